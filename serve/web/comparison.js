// The user study: two questions about two edits side by side.

const $ = (id) => document.getElementById(id);
const QUESTIONS = { follows: "Which follows the instruction better?", preserves: "Which keeps the rest better?" };
const CHOICES = [["Left", 0], ["About the same", null], ["Right", 1]];

export class Comparison {
  constructor(changed, answer = {}) {
    this.changed = changed;
    this.said = { ...answer };
    this.asked = Object.keys(QUESTIONS).find((question) => !(question in this.said)) ?? null;
    $("study-actions").replaceChildren(...Object.keys(QUESTIONS).map((question) => this.group(question)));
  }

  group(question) {
    const group = document.createElement("fieldset");
    group.className = "question";
    group.dataset.question = question;
    const legend = document.createElement("legend");
    legend.textContent = QUESTIONS[question];
    const buttons = CHOICES.map(([words, side], index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(words, Object.assign(document.createElement("kbd"), { textContent: index + 1 }));
      button.addEventListener("click", () => this.say(question, side));
      return button;
    });
    group.append(legend, ...buttons);
    return group;
  }

  get isEmpty() { return !Object.keys(this.said).length; }

  say(question, side) {
    this.said[question] = side;
    this.asked = Object.keys(QUESTIONS).find((other) => !(other in this.said)) ?? null;
    this.changed();
  }

  // Key 1, 2 or 3 answers the question that is asked.
  choose(index) { if (this.asked && index < CHOICES.length) this.say(this.asked, CHOICES[index][1]); }

  takeBack() {
    const last = Object.keys(this.said).at(-1);
    if (!last) return;
    delete this.said[last];
    this.asked = last;
    this.changed();
  }

  clear() {
    this.said = {};
    this.asked = Object.keys(QUESTIONS)[0];
  }

  get answer() { return this.asked ? null : this.said; }

  get words() { return this.asked ? `${QUESTIONS[this.asked]} 1 left, 2 about the same, 3 right.` : "Both questions are answered."; }

  show() {
    for (const group of $("study-actions").children) {
      const { question } = group.dataset;
      group.classList.toggle("asked", question === this.asked);
      [...group.querySelectorAll("button")].forEach((button, index) => {
        button.setAttribute("aria-pressed", String(question in this.said && this.said[question] === CHOICES[index][1]));
      });
    }
  }
}
