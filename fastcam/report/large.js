// One image with the maps of all methods.

const large = $("large");
let opened = -1; // which of those shown is large

function figure(place, m) {
  const made = element("figure"), frame = pictureFrame();
  const caption = element("figcaption", "", m < 0 ? "image" : page.methods[m].title);
  const label = page.labels && page.labels[place] >= 0 ? "is " + className(page.labels[place]) : "";
  const line = element("span", m >= 0 && isWrong(place, m) ? "wrong" : "", m < 0 ? label : said(place, m));
  fill(frame, place, m);
  caption.append(line);
  made.append(frame, caption);
  return made;
}

function open(n) {
  opened = n;
  const place = shown[n];
  $("large-name").textContent = page.names[place];
  $("large-about").textContent = `${n + 1} of ${shown.length}`;
  $("large-maps").replaceChildren(...[-1, ...page.methods.keys()].map((m) => figure(place, m)));
  // A disabled button would lose the focus.
  $("before").setAttribute("aria-disabled", n === 0);
  $("after").setAttribute("aria-disabled", n === shown.length - 1);
  if (!large.open) large.showModal();
}

const step = (by) => opened + by >= 0 && opened + by < shown.length && open(opened + by);
$("before").addEventListener("click", () => step(-1));
$("after").addEventListener("click", () => step(1));
$("close").addEventListener("click", () => large.close());
large.addEventListener("click", (event) => event.target === large && large.close());
large.addEventListener("close", () => go(opened));
document.addEventListener("keydown", (event) => {
  if (!large.open || event.target.type === "range" || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  event.preventDefault();
  step(event.key === "ArrowLeft" ? -1 : 1);
});
