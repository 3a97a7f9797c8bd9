// An order of K edits: chosen one after the other, best first; the next one may tie with the last.

const $ = (id) => document.getElementById(id);

export class Ranking {
  constructor(count, changed) {
    this.count = count;
    this.changed = changed;
    this.clear();
  }

  clear() {
    this.tiers = []; // of places, best first
    this.tying = false;
    this.none = false;
  }

  static from(answer, changed) {
    const ranking = new Ranking(answer.ranks.length, changed);
    for (let rank = 1; rank <= Math.max(...answer.ranks); rank++) {
      ranking.tiers.push(answer.ranks.flatMap((one, place) => (one === rank ? [place] : [])));
    }
    ranking.none = answer.none_acceptable;
    return ranking;
  }

  get left() {
    const chosen = new Set(this.tiers.flat());
    return [...Array(this.count).keys()].filter((place) => !chosen.has(place));
  }

  get isEmpty() { return !this.tiers.length && !this.none; }

  rankOf(place) { return 1 + this.tiers.findIndex((tier) => tier.includes(place)); } // 0: not yet

  // Chosen once it gets the next rank, chosen again it loses it.
  choose(place, tie = this.tying) {
    if (place >= this.count) return;
    const rank = this.rankOf(place);
    if (rank) {
      this.tiers = this.tiers.map((tier) => tier.filter((one) => one !== place)).filter((tier) => tier.length);
    } else if (tie && this.tiers.length) {
      this.tiers.at(-1).push(place);
    } else {
      this.tiers.push([place]);
    }
    this.tying = false;
    this.changed();
  }

  takeBack() {
    const last = this.tiers.at(-1);
    if (!last) return;
    last.pop();
    if (!last.length) this.tiers.pop();
    this.changed();
  }

  toggleTie() { this.tying = this.tiers.length > 0 && !this.tying; this.changed(); }
  toggleNone() { this.none = !this.none; this.changed(); }
  allTheSame() { this.tiers = [[...Array(this.count).keys()]]; this.tying = false; this.changed(); }

  // What is left ties as last, where that is clear: one edit, or any number of them if none is acceptable.
  get answer() {
    const left = this.left;
    if (left.length > 1 && !this.none) return null;
    const tiers = left.length ? [...this.tiers, left] : this.tiers;
    const ranks = Array(this.count);
    tiers.forEach((tier, index) => tier.forEach((place) => { ranks[place] = index + 1; }));
    return { ranks, none_acceptable: this.none };
  }

  get words() {
    const left = this.left.length;
    if (this.tying) return "The next edit that you choose ties with the last.";
    if (this.isEmpty) return `Choose the best edit: click it, or press 1 to ${this.count}.`;
    if (this.none) return "None is acceptable. You may still say which is better.";
    if (left > 1) return `Choose the next best; ${left} are left.`;
    return left ? "The last one comes last. Store, or choose it as a tie." : "All are ranked.";
  }

  show(cards) {
    cards.forEach((card, place) => {
      const rank = this.rankOf(place);
      const tied = rank && this.tiers[rank - 1].length > 1;
      card.setAttribute("aria-pressed", String(rank > 0));
      card.setAttribute("aria-label", `Edit ${place + 1}, ${rank ? `place ${rank}${tied ? ", tied" : ""}` : "not ranked"}`);
      card.querySelector(".place").textContent = rank ? `${rank}.${tied ? " =" : ""}` : "";
    });
    $("tie").setAttribute("aria-pressed", String(this.tying));
    $("none").setAttribute("aria-pressed", String(this.none));
  }
}
