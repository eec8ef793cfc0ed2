// Only the images near the window exist as elements.

const grid = $("grid");
const TEXT = 44; // pixels below a picture: its name and what is said of it
const AHEAD = 2; // rows above and below the window
const cells = new Map(); // by their place in `shown`

let shown = []; // places of the images, as filtered and sorted
let active = 0; // which of them the keyboard is at
let columns = 1, side = page.tile, row = 1;

function cell(n) {
  const place = shown[n], made = element("div", "cell"), tile = element("button", "tile"), frame = pictureFrame();
  const wrong = isWrong(place), name = page.names[place], text = said(place);
  tile.type = "button";
  tile.tabIndex = n === active ? 0 : -1;
  tile.title = `${name}\n${text}`;
  tile.setAttribute("aria-label", [name, text, wrong && "wrong"].filter(Boolean).join(", "));
  tile.classList.toggle("is-wrong", wrong === true);
  tile.append(frame, element("span", "name", name), element("span", "said", briefly(place)));
  tile.addEventListener("click", () => open(n));
  tile.addEventListener("focus", () => activate(n));
  made.setAttribute("role", "listitem");
  made.setAttribute("aria-setsize", shown.length);
  made.setAttribute("aria-posinset", n + 1);
  made.dataset.place = place;
  made.append(tile);
  made.filled = fill(frame, place, method);
  return made;
}

function measure() {
  const gap = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--gap"));
  const width = grid.clientWidth, least = Math.min(Math.max(page.tile, 100), 150, (width - gap) / 2);
  columns = Math.max(1, Math.floor((width + gap) / (least + gap)));
  side = (width - gap * (columns - 1)) / columns;
  row = side + TEXT + gap;
  grid.style.height = Math.max(0, Math.ceil(shown.length / columns) * row - gap) + "px";
  for (const [n, made] of cells) put(n, made, gap);
  return gap;
}

function put(n, made, gap) {
  made.style.width = side + "px";
  made.style.transform = `translate(${(n % columns) * (side + gap)}px, ${Math.floor(n / columns) * row}px)`;
}

function render() {
  const gap = measure(), top = -grid.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(top / row) - AHEAD) * columns;
  const last = Math.min(shown.length, (Math.ceil((top + innerHeight) / row) + AHEAD) * columns);
  for (const [n, made] of cells) {
    if ((n < first || n >= last) && n !== active) {
      made.remove();
      cells.delete(n);
    } else if (!made.filled) {
      made.filled = fill(made.querySelector(".picture"), shown[n], method);
    }
  }
  const wanted = active < shown.length ? [active] : [];
  for (let n = first; n < last; n++) wanted.push(n);
  for (const n of wanted) {
    if (cells.has(n)) continue;
    const made = cell(n);
    put(n, made, gap);
    cells.set(n, made);
    grid.append(made);
  }
}

let waiting = 0;
const renderSoon = () => (waiting ||= requestAnimationFrame(() => ((waiting = 0), render())));

function refresh() {
  for (const made of cells.values()) made.remove();
  cells.clear();
  render();
}

function activate(n) {
  const before = cells.get(active);
  active = n;
  if (before) before.firstChild.tabIndex = -1;
  if (cells.has(n)) cells.get(n).firstChild.tabIndex = 0;
}

/** Move the keyboard to an image, and the window with it. */
function go(n) {
  activate(Math.min(Math.max(n, 0), shown.length - 1));
  const top = grid.getBoundingClientRect().top + Math.floor(active / columns) * row;
  const covered = getComputedStyle($("bar")).position === "sticky" ? $("bar").offsetHeight : 0;
  if (top < covered + 8) scrollBy(0, top - covered - 8);
  else if (top + row > innerHeight) scrollBy(0, top + row - innerHeight);
  render();
  cells.get(active).firstChild.focus({ preventScroll: true });
}

grid.addEventListener("keydown", (event) => {
  const page = Math.max(1, Math.floor(innerHeight / row) - 1) * columns;
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page };
  const ends = { Home: 0, End: shown.length - 1 };
  if (event.altKey || event.ctrlKey || event.metaKey || !(event.key in moves || event.key in ends)) return;
  event.preventDefault();
  const to = event.key in ends ? ends[event.key] : active + moves[event.key];
  if (to >= 0 && to < shown.length || event.key.startsWith("Page")) go(to);
});
