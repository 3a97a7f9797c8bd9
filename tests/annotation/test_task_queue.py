import json
import threading
import time
from collections import Counter

import pytest
from sqlalchemy import select, text
from work import hired, loaded, prompts

from hive_ray.annotation.answers import AnswerError
from hive_ray.annotation.database import DatabaseUnavailableError
from hive_ray.annotation.exports import read_answers
from hive_ray.annotation.models import RANK, Answer, Task
from hive_ray.annotation.people import set_paused
from hive_ray.annotation.task_queue import AssignmentPolicy, RequestRefusedError, TaskQueue
from hive_ray.annotation.tasks import automatic_gold, load_tasks, read_gold
from hive_ray.files.text_files import parse_json_lines

BEST_FIRST = {"ranks": [1, 2, 3, 4]}


class Clock:
    def __init__(self):
        self.at = 1000.0

    def __call__(self):
        return self.at


def desk(database, **plan) -> TaskQueue:
    return TaskQueue(database, AssignmentPolicy(**{"kind": RANK, "lease_s": 60.0} | plan), Clock())


def do(desk: TaskQueue, person: int, answer=None, seconds: float = 1.0):
    """The next task of a person, answered; None if there is none."""
    showing = desk.next(person)
    if showing is not None:
        desk.submit(person, showing.assignment_id, f"key {showing.assignment_id}", answer or BEST_FIRST, seconds)
    return showing


def patiently(act, *given, within_s: float = 120.0):
    """What `act` gives, asked again where the database was busy, as the page does."""
    until = time.monotonic() + within_s
    while True:
        try:
            return act(*given)
        except DatabaseUnavailableError:
            if time.monotonic() > until:
                raise


def test_tasks_that_come_again_in_another_order_are_handed_out_in_it(database):
    first, second = prompts(6)[:4], prompts(6)
    load_tasks(database, RANK, first, people_per_task=2)
    ada, bea = desk(database), hired(database, "Bea")
    person = hired(database, "Ada")
    assert do(ada, person).task.prompt_id == "p0"
    order = [second[place] for place in (5, 1, 0, 4, 3)]  # p2 is gone
    load_tasks(database, RANK, order, people_per_task=2)
    assert [do(ada, bea).task.prompt_id for _ in range(5)] == ["p5", "p1", "p0", "p4", "p3"]
    assert [do(ada, person).task.prompt_id for _ in range(4)] == ["p5", "p1", "p4", "p3"]
    assert do(ada, person) is None


def test_tasks_that_come_again_as_they_were_keep_their_places(database):
    def positions():
        return database.read(lambda session: list(session.scalars(select(Task.position).order_by(Task.id))))

    load_tasks(database, RANK, [*prompts(3), *automatic_gold(prompts(3))], people_per_task=1)
    before = positions()
    load_tasks(database, RANK, [*prompts(4), *automatic_gold(prompts(3))], people_per_task=1)
    assert positions()[: len(before)] == before


def taken(database) -> list[int]:
    return database.read(lambda session: list(session.scalars(select(Task.taken).order_by(Task.position))))


# --- Handing out ------------------------------------------------------------------------------------------


def test_each_task_goes_to_the_set_number_of_different_people(database):
    loaded(database, 3, people_per_task=2)
    here = desk(database)
    people = [hired(database, name) for name in ("Ada", "Bea", "Cem")]
    done = Counter()
    for _ in range(4):
        for person in people:
            showing = do(here, person)
            if showing is not None:
                done[showing.task.prompt_id, person] += 1
    assert set(done.values()) == {1}  # nobody twice
    assert Counter(prompt for prompt, _ in done) == {"p0": 2, "p1": 2, "p2": 2}


def test_a_closed_browser_gets_its_task_back_and_the_page_its_next_one(database):
    loaded(database, 3)
    here, ada = desk(database), hired(database, "Ada")
    first = here.next(ada)
    second = here.next(ada, on_screen=[first.assignment_id])
    assert (first.task.prompt_id, second.task.prompt_id) == ("p0", "p1")
    assert here.next(ada).assignment_id == first.assignment_id  # a new browser holds nothing
    assert here.next(ada, on_screen=[first.assignment_id]).assignment_id == second.assignment_id


def test_edits_are_shown_in_an_order_that_differs_between_people_and_stays_for_one(database):
    loaded(database, 1, people_per_task=20)
    here = desk(database)
    orders = {}
    for number in range(20):
        person = hired(database, f"Person {number}")
        orders[person] = tuple(here.next(person).shown)
        assert tuple(here.next(person).shown) == orders[person]
    assert len(set(orders.values())) > 5
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders.values())


def test_a_lease_that_ended_goes_to_the_next_person(database):
    loaded(database, 1)
    here, ada, bea = desk(database), hired(database, "Ada"), hired(database, "Bea")
    here.next(ada)
    assert here.next(bea) is None
    here.now.at += 61
    assert here.next(bea).task.prompt_id == "p0"
    assert taken(database) == [1]


def test_a_lease_is_renewed_by_its_owner_alone(database):
    loaded(database, 1)
    here, ada, bea = desk(database), hired(database, "Ada"), hired(database, "Bea")
    lease = here.next(ada).assignment_id
    here.now.at += 50
    assert here.renew_leases(bea, [lease]) == []
    assert here.renew_leases(ada, [lease, 999]) == [lease]
    here.now.at += 50
    assert here.next(bea) is None


def test_nobody_holds_many_leases(database):
    loaded(database, 9)
    here, ada = desk(database), hired(database, "Ada")
    held = []
    while (showing := here.next(ada, held)) is not None:
        held.append(showing.assignment_id)
    assert len(held) == 3


def test_tasks_that_were_passed_over_make_no_room_scarce_and_are_given_back(database):
    loaded(database, 6)
    here, ada, bea = desk(database), hired(database, "Ada"), hired(database, "Bea")
    passed = []
    while (showing := here.next(ada, skipped_over=passed)) is not None:
        passed.append(showing.assignment_id)
    assert len(set(passed)) == 6  # more than anybody may hold
    here.release(bea, passed)
    assert taken(database) == [1] * 6
    for _ in range(2):
        here.release(ada, passed)
    assert taken(database) == [0] * 6
    assert here.next(bea).task.prompt_id == "p0"
    assert here.next(ada).task.prompt_id == "p1"  # their own again, where nothing else is left


def test_tasks_that_are_broken_or_gone_are_not_handed_out(database):
    loaded(database, 3)
    here, ada = desk(database), hired(database, "Ada")
    load_tasks(database, RANK, prompts(2), 1)  # the third is gone from the run folder
    here.mark_broken(here.next(ada).task.id, "picture p0e1 is not readable")
    assert do(here, ada).task.prompt_id == "p1"
    assert here.next(ada) is None
    load_tasks(database, RANK, prompts(2), 1)  # it may have been mended
    assert do(here, ada).task.prompt_id == "p0"


def test_what_is_known_of_a_task_may_be_corrected(database):
    for better, worse in (("p0e0", "p0e3"), ("p0e3", "p0e0")):
        line = json.dumps({"prompt_id": "p0", "better": better, "worse": worse})
        known = read_gold(parse_json_lines(line.encode(), "gold.jsonl"), "gold.jsonl", prompts(1))
        load_tasks(database, RANK, [*prompts(1), *known], people_per_task=1)
        [gold] = database.read(lambda session: list(session.scalars(select(Task.gold).where(Task.gold.is_not(None)))))
        assert gold == {"better": [better], "worse": [worse]}


def test_loading_again_adds_new_prompts_alone_and_forgets_no_answer(database):
    loaded(database, 2)
    here, ada = desk(database), hired(database, "Ada")
    do(here, ada)
    assert load_tasks(database, RANK, prompts(3), people_per_task=1) == 1
    assert load_tasks(database, RANK, prompts(3), people_per_task=1) == 0
    assert [do(here, ada).task.prompt_id for _ in range(2)] == ["p1", "p2"]
    assert len(read_answers(database)) == 3


def test_more_people_per_task_open_finished_tasks_again_for_others(database):
    loaded(database, 1)
    here, ada, bea = desk(database), hired(database, "Ada"), hired(database, "Bea")
    do(here, ada)
    assert here.next(bea) is None
    load_tasks(database, RANK, prompts(1), people_per_task=2)
    assert here.next(ada) is None
    assert do(here, bea).task.prompt_id == "p0"


def test_gold_tasks_come_at_their_rate_once_each_and_take_no_place(database):
    work = prompts(30)
    load_tasks(database, RANK, [*work, *automatic_gold(work)], people_per_task=1)
    here, ada = desk(database, gold_rate=0.3), hired(database, "Ada")
    seen = [do(here, ada) for _ in range(40)]
    golds = [showing.task.key for showing in seen if showing.task.gold]
    assert len(golds) == len(set(golds)) == 10  # all there are
    assert {showing.task.prompt_id for showing in seen if not showing.task.gold} == {f"p{n}" for n in range(30)}


def test_repeats_come_after_enough_others_once_each_and_take_no_place(database):
    loaded(database, 12)
    here, ada = desk(database, repeat_rate=0.5, repeat_after=3), hired(database, "Ada")
    seen = []
    while (showing := do(here, ada)) is not None:
        seen.append(showing.task.prompt_id)
    again = [number for number, prompt in enumerate(seen) if prompt in seen[:number]]
    assert again
    assert max(Counter(seen).values()) == 2
    assert all(number - seen.index(seen[number]) > 3 for number in again)
    assert taken(database) == [1] * 12


def test_a_paused_person_gets_nothing_and_hands_nothing_in(database):
    loaded(database, 1)
    here, ada = desk(database), hired(database, "Ada")
    lease = here.next(ada).assignment_id
    set_paused(database, ada, True)
    with pytest.raises(RequestRefusedError, match="paused"):
        here.next(ada)
    with pytest.raises(RequestRefusedError, match="paused"):
        here.submit(ada, lease, "key", BEST_FIRST, 1.0)
    set_paused(database, ada, False)
    here.submit(ada, lease, "key", BEST_FIRST, 1.0)


# --- Handing in -------------------------------------------------------------------------------------------


def test_ranks_are_stored_in_the_order_of_the_task_whatever_order_was_shown(database):
    loaded(database, 1)
    here, ada = desk(database), hired(database, "Ada")
    showing = here.next(ada)
    ranks = [place + 1 for place in showing.shown]  # the edit at place i of the task is ranked i + 1
    here.submit(ada, showing.assignment_id, "key", {"ranks": ranks}, 1.0)
    assert read_answers(database)[0].verdict == {"ranks": [1, 2, 3, 4], "none_acceptable": False}


def test_what_is_sent_twice_is_stored_once(database):
    loaded(database, 2)
    here, ada = desk(database), hired(database, "Ada")
    lease = here.next(ada).assignment_id
    first = here.submit(ada, lease, "key", BEST_FIRST, 1.0)
    again = here.submit(ada, lease, "key", BEST_FIRST, 1.0)
    assert (first.already_stored, again.already_stored) == (False, True)
    assert first.answer_id == again.answer_id
    with pytest.raises(RequestRefusedError, match="answered this task already"):
        here.submit(ada, lease, "another key", BEST_FIRST, 1.0)
    assert len(read_answers(database)) == 1


def test_a_key_of_another_answer_is_refused(database):
    loaded(database, 2)
    here, ada, bea = desk(database), hired(database, "Ada"), hired(database, "Bea")
    here.submit(ada, here.next(ada).assignment_id, "key", BEST_FIRST, 1.0)
    with pytest.raises(RequestRefusedError, match="belongs to another answer"):
        here.submit(bea, here.next(bea).assignment_id, "key", BEST_FIRST, 1.0)


def test_another_persons_task_is_refused(database):
    loaded(database, 1)
    here, ada, bea = desk(database), hired(database, "Ada"), hired(database, "Bea")
    lease = here.next(ada).assignment_id
    for act in (lambda: here.submit(bea, lease, "key", BEST_FIRST, 1.0), lambda: here.shown_task(bea, lease)):
        with pytest.raises(RequestRefusedError, match="was not given to you") as caught:
            act()
        assert caught.value.reason == "not_yours"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"ranks": [1, 2, 3]}, "3 ranks"),
        ({"ranks": [1, 2, 3, 0]}, "not whole numbers from 1"),
        ({"ranks": [1, 3, 4, 5]}, "leave gaps"),
        ({"ranks": [1, 2, 3, "4"]}, "not whole numbers"),
        ({"ranks": None}, "wanted ranks"),
        ({"ranks": [1, 2, 3, 4], "extra": 1}, "extra"),
        ({"skipped": " "}, "give a reason"),
        ({"skipped": "x" * 301}, "give a reason"),
        ({"skipped": "odd", "ranks": [1, 2, 3, 4]}, "nothing else"),
        ([1, 2, 3, 4], "a list"),
    ],
)
def test_an_answer_that_says_no_order_is_refused_and_the_task_stays_open(database, answer, words):
    loaded(database, 1)
    here, ada = desk(database), hired(database, "Ada")
    lease = here.next(ada).assignment_id
    with pytest.raises(AnswerError, match=words):
        here.submit(ada, lease, "key", answer, 1.0)
    assert not here.submit(ada, lease, "key", BEST_FIRST, 1.0).already_stored


def test_an_answer_after_the_lease_is_taken_while_the_place_is_free_and_refused_when_it_is_gone(database):
    loaded(database, 2)
    here, ada, bea = desk(database), hired(database, "Ada"), hired(database, "Bea")
    late = [here.next(ada).assignment_id]
    late.append(here.next(ada, late).assignment_id)
    here.now.at += 61
    do(here, bea)  # sweeps, and takes the first
    with pytest.raises(RequestRefusedError, match="given to somebody else") as caught:
        here.submit(ada, late[0], "late 0", BEST_FIRST, 1.0)
    assert caught.value.reason == "lease_gone"
    here.submit(ada, late[1], "late 1", BEST_FIRST, 1.0)
    assert taken(database) == [1, 1]
    assert len(read_answers(database)) == 2


def test_a_skipped_task_goes_to_somebody_else_and_not_to_the_same_person(database):
    loaded(database, 1)
    here, ada, bea = desk(database), hired(database, "Ada"), hired(database, "Bea")
    do(here, ada, {"skipped": "I cannot tell"})
    assert taken(database) == [0]
    assert here.next(ada) is None
    assert do(here, bea).task.prompt_id == "p0"
    assert read_answers(database)[0].verdict == {"skipped": "I cannot tell"}


def test_undo_shows_the_last_answer_and_a_correction_counts_beside_it(database):
    loaded(database, 2)
    here, ada = desk(database), hired(database, "Ada")
    showing = do(here, ada)
    back = here.last_answered(ada)
    assert back.assignment_id == showing.assignment_id
    assert back.answer == BEST_FIRST | {"none_acceptable": False}
    here.submit(ada, back.assignment_id, "corrected", {"ranks": [4, 3, 2, 1]}, 2.0, corrects=back.answer_id)
    with pytest.raises(RequestRefusedError, match="corrected meanwhile"):
        here.submit(ada, back.assignment_id, "later", BEST_FIRST, 2.0, corrects=back.answer_id)
    found = read_answers(database)
    assert len(found) == 1
    assert [found[0].verdict["ranks"][place] for place in back.shown] == [4, 3, 2, 1]
    assert database.read(lambda session: len(session.scalars(select(Answer)).all())) == 2  # nothing is overwritten


def test_undo_goes_back_step_by_step_and_never_into_another_persons_work(database):
    loaded(database, 3)
    here, ada, bea = desk(database), hired(database, "Ada"), hired(database, "Bea")
    assert here.last_answered(ada) is None
    done = [do(here, ada).assignment_id, do(here, ada).assignment_id]
    do(here, bea)
    last = here.last_answered(ada)
    assert last.assignment_id == done[1]
    assert here.last_answered(ada, before=last.assignment_id).assignment_id == done[0]
    assert here.last_answered(ada, before=done[0]) is None


def test_a_skip_that_is_corrected_takes_its_place_again_unless_somebody_has_it(database):
    loaded(database, 1)
    here, ada, bea = desk(database), hired(database, "Ada"), hired(database, "Bea")
    do(here, ada, {"skipped": "odd"})
    back = here.last_answered(ada)
    here.submit(ada, back.assignment_id, "second", BEST_FIRST, 1.0, corrects=back.answer_id)
    assert taken(database) == [1]
    back = here.last_answered(ada)
    here.submit(ada, back.assignment_id, "third", {"skipped": "after all"}, 1.0, corrects=back.answer_id)
    assert taken(database) == [0]
    do(here, bea)
    back = here.last_answered(ada)
    with pytest.raises(RequestRefusedError, match="somebody else"):
        here.submit(ada, back.assignment_id, "fourth", BEST_FIRST, 1.0, corrects=back.answer_id)


def test_time_is_what_the_page_measured_but_never_more_than_since_the_task_was_handed_out(database):
    loaded(database, 2)
    here, ada = desk(database), hired(database, "Ada")
    for claimed in (3.0, 1e9):
        showing = here.next(ada)
        here.now.at += 7
        here.submit(ada, showing.assignment_id, f"key {claimed}", BEST_FIRST, claimed)
    assert [one.seconds for one in read_answers(database)] == [3.0, 7.0]


# --- Many at once -----------------------------------------------------------------------------------------


def test_twenty_people_at_once_do_each_task_exactly_as_often_as_wanted(database):
    """Each person also sends everything twice, asks for the next task from two threads, and again when it is busy."""
    loaded(database, 30, people_per_task=3)
    here = TaskQueue(database, AssignmentPolicy(kind=RANK, lease_s=600.0))
    people = [hired(database, f"Person {number}") for number in range(20)]
    errors = []

    def work(person: int) -> None:
        try:
            while (showing := patiently(here.next, person)) is not None:
                key = f"{person} {showing.assignment_id}"
                for _ in range(2):
                    patiently(here.submit, person, showing.assignment_id, key, BEST_FIRST, 0.1)
        except RequestRefusedError as error:  # the other thread of this person was faster
            if error.reason != "answered":
                errors.append(error)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(person,)) for person in people for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    found = read_answers(database)
    assert Counter(one.prompt_id for one in found) == {f"p{number}": 3 for number in range(30)}
    assert max(Counter((one.prompt_id, one.annotator) for one in found).values()) == 1
    assert taken(database) == [3] * 30


def test_leases_of_many_that_end_while_others_ask_are_given_back_once_each(database):
    loaded(database, 10, people_per_task=2)
    here = desk(database, lease_s=1.0)
    for number in range(10):
        person = hired(database, f"Gone {number}")
        held = [here.next(person).assignment_id]
        here.next(person, held)
    assert taken(database) == [2] * 10
    here.now.at += 5
    people = [hired(database, f"Here {number}") for number in range(8)]
    threads = [threading.Thread(target=here.next, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    here.end_expired_leases()
    assert sum(taken(database)) == 8


@pytest.mark.parametrize(
    ("index", "condition"),
    [
        ("ix_tasks_open", "taken < wanted AND present {} AND broken IS NULL AND gold IS NULL AND position > 3"),
        ("ix_tasks_gold", "gold IS NOT NULL"),
    ],
)
def test_the_next_task_is_found_by_an_index(database, index, condition):
    loaded(database, 50)
    on_sqlite = database.file is not None
    query = f"SELECT id FROM tasks WHERE kind = 'rank' AND {condition} ORDER BY position LIMIT 1"

    def explained(session) -> str:
        if not on_sqlite:
            session.execute(text("SET LOCAL enable_seqscan = off"))
        explain = "EXPLAIN QUERY PLAN " if on_sqlite else "EXPLAIN "
        return str(session.execute(text(explain + query.format("= 1" if on_sqlite else ""))).all())

    assert index in database.read(explained)
