// Maps in colours, over their pictures.

const schemes = Object.fromEntries(Object.entries(page.schemes).map(([name, table]) => [name, bytes(table)]));

/** Paint a map over a picture of some width and height: resized first, bilinearly, then coloured. */
function paint(canvas, map, width, height) {
  canvas.width = width;
  canvas.height = height;
  const colours = schemes[$("scheme").value], [h, w] = map, image = new ImageData(width, height);
  const steps = (size, count) => Array.from({ length: count }, (_, n) => {
    const at = Math.min(Math.max(((n + 0.5) * size) / count - 0.5, 0), size - 1), low = Math.floor(at);
    return [low, Math.min(low + 1, size - 1), at - low];
  });
  const across = steps(w, width);
  let at = 0;
  for (const [top, bottom, down] of steps(h, height)) {
    for (const [left, right, over] of across) {
      const above = map[2 + top * w + left] * (1 - over) + map[2 + top * w + right] * over;
      const below = map[2 + bottom * w + left] * (1 - over) + map[2 + bottom * w + right] * over;
      const level = 3 * Math.round(above * (1 - down) + below * down);
      image.data[at++] = colours[level];
      image.data[at++] = colours[level + 1];
      image.data[at++] = colours[level + 2];
      image.data[at++] = 255;
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Show a picture with a method's map, or with none for m = -1; false while it is not there yet. */
function fill(frame, place, m) {
  const found = stored(place);
  if (!found) return false;
  const map = m < 0 || !found[1 + m] ? null : bytes(found[1 + m]);
  const img = frame.querySelector("img"), canvas = frame.querySelector("canvas");
  const draw = (width, height) => (map ? paint(canvas, map, width, height) : (canvas.width = canvas.height = 0));
  if (found[0]) {
    img.onload = () => draw(img.naturalWidth, img.naturalHeight);
    img.src = "data:image/jpeg;base64," + found[0];
  } else {
    img.hidden = true;
    draw(page.tile, map ? Math.round((page.tile * map[0]) / map[1]) : page.tile);
  }
  const notes = [!found[0] && "no picture", m >= 0 && !map && "no map"].filter(Boolean);
  if (notes.length) frame.dataset.note = notes.join(", ");
  return true;
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function pictureFrame() {
  const frame = element("span", "picture"), img = element("img"), canvas = element("canvas");
  img.alt = "";
  img.decoding = "async";
  canvas.width = canvas.height = 0;
  canvas.setAttribute("aria-hidden", "true");
  frame.append(img, canvas);
  return frame;
}
