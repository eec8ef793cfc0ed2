// Which images are shown, in which order, and what else there is to set.

function choose() {
  const wanted = $("class").value, answer = document.querySelector("[name=answer]:checked").value;
  const { score } = page.methods[method];
  shown = page.names.map((_, place) => place).filter((place) => {
    const right = wanted === "" || classOf(place) === Number(wanted);
    return right && (answer === "all" || isWrong(place) === (answer === "wrong"));
  });
  const known = (place) => (score[place] === null ? -Infinity : score[place]);
  const orders = {
    index: null,
    high: (a, b) => known(b) - known(a) || a - b,
    low: (a, b) => (score[a] === null) - (score[b] === null) || known(a) - known(b) || a - b,
    name: (a, b) => compare(page.names[a], page.names[b]) || a - b,
  };
  const order = orders[$("sort").value];
  if (order) shown.sort(order);
  active = 0;
  const total = page.names.length.toLocaleString("en"), some = shown.length.toLocaleString("en");
  $("count").textContent = shown.length === page.names.length ? `${total} images` : `${some} of ${total} images`;
  $("none").hidden = shown.length > 0;
  refresh();
}

const compare = new Intl.Collator("en", { numeric: true }).compare;

function options(select, pairs) {
  const before = select.value;
  select.replaceChildren(...pairs.map(([value, text]) => {
    const made = element("option", "", text);
    made.value = value;
    return made;
  }));
  if (pairs.some(([value]) => value === before)) select.value = before;
}

function classOptions() {
  const counts = new Map();
  page.names.forEach((_, place) => counts.set(classOf(place), (counts.get(classOf(place)) ?? 0) + 1));
  const found = [...counts].filter(([index]) => index >= 0).sort(([a], [b]) => a - b);
  const text = (index) => (page.classes[index] === undefined ? `class ${index}` : `${index} ${page.classes[index]}`);
  options($("class"), [["", "all classes"], ...found.map(([index, n]) => [String(index), `${text(index)} (${n})`])]);
}

function describe() {
  const { name, layers, explained, settings, unfinished } = page.methods[method];
  const told = [name, layers.join(", "), "explains: " + explained, ...settings, unfinished];
  $("about").textContent = told.filter(Boolean).join(" \u00b7 ");
}

for (const slider of document.querySelectorAll(".opacity")) {
  slider.addEventListener("input", () => {
    document.documentElement.style.setProperty("--opacity", slider.value / 100);
    for (const other of document.querySelectorAll(".opacity")) other.value = slider.value;
    for (const output of document.querySelectorAll(".percent")) output.textContent = slider.value + " %";
  });
}
$("method").addEventListener("change", () => {
  method = Number($("method").value);
  describe();
  classOptions();
  choose();
});
for (const id of ["class", "sort", "answers"]) $(id).addEventListener("change", choose);
$("scheme").addEventListener("change", refresh);
$("bar").addEventListener("submit", (event) => event.preventDefault());
$("reset").addEventListener("click", () => {
  $("class").value = "";
  $("answer-all").checked = true;
  choose();
});
addEventListener("scroll", renderSoon, { passive: true });
addEventListener("resize", renderSoon);

options($("method"), [...page.methods.keys()].map((m) => [String(m), page.methods[m].title]));
options($("scheme"), Object.keys(schemes).map((name) => [name, name]));
$("method-field").hidden = page.methods.length < 2;
$("answers").hidden = !page.labels;
if (page.failed.length) {
  $("failed").hidden = false;
  $("failed").querySelector("summary").textContent = `${page.failed.length} failed`;
  $("failed").querySelector("tbody").append(...page.failed.map(({ name, reason }) => {
    const line = element("tr");
    line.append(element("td", "", name), element("td", "", reason));
    return line;
  }));
}
$("bar").reset(); // a browser that comes back to the page keeps what was chosen
describe();
classOptions();
choose();
const reading = setInterval(render, 100);
document.addEventListener("DOMContentLoaded", () => {
  clearInterval(reading);
  render();
});
