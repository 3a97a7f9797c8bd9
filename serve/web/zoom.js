// All pictures enlarged at the same place of the picture: where the pointer is, or where the arrow keys lead.

const STEP = 0.08;
let scale = 1, x = 0.5, y = 0.5; // the place, in shares of the picture's width and height

// Where a picture lies in its frame, which it does not fill where their shapes differ: left, top, width, height.
function box(image) {
  const { clientWidth: width, clientHeight: height, naturalWidth, naturalHeight } = image;
  const fit = Math.min(width / naturalWidth, height / naturalHeight) || 0;
  const [across, down] = [naturalWidth * fit, naturalHeight * fit];
  return [(width - across) / 2, (height - down) / 2, across, down];
}

function show() {
  document.body.classList.toggle("zoomed", scale > 1);
  document.getElementById("zoom").setAttribute("aria-pressed", String(scale > 1));
  for (const image of document.querySelectorAll(".frame img")) {
    const [left, top, width, height] = box(image);
    image.style.transformOrigin = `${left + x * width}px ${top + y * height}px`;
    image.style.transform = scale > 1 ? `scale(${scale})` : "";
  }
}

function clamped(value) { return Math.min(1, Math.max(0, value)); }

export function toggleZoom() { scale = scale > 1 ? 1 : 3; show(); }
export function endZoom() { const was = scale > 1; scale = 1; x = y = 0.5; show(); return was; }
export function isZoomed() { return scale > 1; }

export function moveZoom(key) {
  const [right, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
  x = clamped(x + right * STEP);
  y = clamped(y + down * STEP);
  show();
}

function follow(event) {
  const frame = event.target instanceof Element && event.target.closest(".frame");
  if (!frame) return false;
  const outer = frame.getBoundingClientRect();
  const [left, top, width, height] = box(frame.querySelector("img"));
  x = clamped((event.clientX - outer.left - left) / width);
  y = clamped((event.clientY - outer.top - top) / height);
  return true;
}

document.addEventListener("pointermove", (event) => { if (scale > 1 && follow(event)) show(); });
document.addEventListener("wheel", (event) => {
  if (!follow(event)) return;
  event.preventDefault();
  scale = Math.min(8, Math.max(1, scale * (event.deltaY < 0 ? 1.25 : 0.8)));
  if (scale < 1.05) scale = 1;
  show();
}, { passive: false });
document.getElementById("zoom").addEventListener("click", toggleZoom);
