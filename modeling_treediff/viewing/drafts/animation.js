"use strict";
const MILLISECONDS = 120;
const frames = JSON.parse(document.getElementById("data").textContent);
const last = frames.length - 1;
const text = document.querySelector(".draft-text");
const caption = document.querySelector(".draft-caption");
const bar = document.querySelectorAll(".draft-bar i");
const slider = document.getElementById("frame");
const button = document.getElementById("play");

/* One slot per position, holding a span for every state it takes; states[place] = [[first frame, span], ...]. */
const states = frames[0].changes.map(() => []);
text.replaceChildren(...states.map(() => Object.assign(document.createElement("span"), { className: "slot" })));
frames.forEach((frame, index) => {
  for (const [place, html] of frame.changes) {
    const span = Object.assign(document.createElement("span"), { innerHTML: html });
    text.children[place].append(span);
    states[place].push([index, span]);
  }
});

function breakLines() {
  for (const old of text.querySelectorAll("br")) old.remove();
  text.classList.add("measuring");
  const tops = [...text.children].map((slot) => slot.offsetTop);
  const firsts = [...text.children].filter((_, place) => place > 0 && tops[place] > tops[place - 1]);
  text.classList.remove("measuring");
  for (const slot of firsts) slot.before(document.createElement("br"));
}

function show(index) {
  for (const state of states) {
    const current = state.findLast(([first]) => first <= index);
    for (const one of state) one[1].classList.toggle("shown", one === current);
  }
  frames[index].counts.forEach((count, depth) => { bar[depth].style.flexGrow = count; });
  text.classList.toggle("finished", index === last);
  caption.textContent = frames[index].caption;
  slider.value = index;
  slider.setAttribute("aria-valuetext", frames[index].caption);
}

let timer = null;
function pause() {
  clearInterval(timer);
  timer = null;
  button.textContent = "Play";
}
function play() {
  if (Number(slider.value) === last) show(0);
  button.textContent = "Pause";
  timer = setInterval(() => {
    const next = Number(slider.value) + 1;
    show(next);
    if (next === last) pause();
  }, MILLISECONDS);
}
button.addEventListener("click", () => (timer === null ? play() : pause()));
slider.addEventListener("input", () => { pause(); show(Number(slider.value)); });

addEventListener("resize", breakLines);
breakLines();
document.querySelector(".controls").hidden = false;
/* Those who asked for less motion start at the finished text and move the slider themselves. */
if (matchMedia("(prefers-reduced-motion: reduce)").matches || last === 0) show(last);
else { show(0); play(); }
