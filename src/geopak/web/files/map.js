// Draws the answers of the page on the province map, as SVG, without any library or network.
"use strict";
(() => {
const NS = "http://www.w3.org/2000/svg";
let base = null;
const asked = fetch("map/base.json").then((r) => r.json()).then((b) => { base = b; });
const node = (tag, attributes, parent) => {
  const e = document.createElementNS(NS, tag);
  for (const key in attributes) e.setAttribute(key, attributes[key]);
  if (parent) parent.append(e);
  return e;
};
const radians = Math.PI / 180;
function kilometres(a, b) {
  const [p, q] = [a[0] * radians, b[0] * radians], d = (b[1] - a[1]) * radians;
  const h = Math.sin((q - p) / 2) ** 2 + Math.cos(p) * Math.cos(q) * Math.sin(d / 2) ** 2;
  return 2 * 6371.0088 * Math.asin(Math.min(1, Math.sqrt(h)));
}
const inWords = (km) => km < 10 ? km.toFixed(1) : Math.round(km).toLocaleString("en");

function draw(box) {
  const answer = JSON.parse(box.dataset.answer || "null");
  const [south, west, north, east] = base.bounds;
  const squeeze = Math.cos((south + north) / 2 * radians), margin = 0.35;
  // Longitudes go on beyond 180 degrees where a region does.
  const inFrame = (lon) => { const middle = (west + east) / 2; return lon + 360 * Math.round((middle - lon) / 360); };
  const X = (lon) => (inFrame(lon) - west) * squeeze, Y = (lat) => north - lat;
  const lonOf = (x) => { const lon = x / squeeze + west; return ((lon + 540) % 360) - 180; }, latOf = (y) => north - y;
  const whole = [-margin, -margin, (east - west) * squeeze + 2 * margin, north - south + 2 * margin];
  let view = [...whole];
  box.replaceChildren();
  const svg = node("svg", { role: "img", tabindex: "0", class: "geopak-svg",
    "aria-label": answer ? "Map of the answer: " + answer.province + ", " + answer.lat.toFixed(3) + ", " + answer.lon.toFixed(3) : "Map of the provinces" }, box);
  svg.style.aspectRatio = whole[2] + " / " + whole[3];
  const ring = (r) => { let d = "";
    for (let k = 0; k < r.length; k += 2) d += (k ? "L" : "M") + X(r[k]).toFixed(4) + " " + Y(r[k + 1]).toFixed(4);
    return d + "Z"; };
  const area = (polygons) => polygons.map((p) => p.map(ring).join("")).join("");
  base.provinces.forEach((polygons, k) => {
    const path = node("path", { d: area(polygons), class: "province", style: "--own:" + base.colors[k] }, svg);
    node("title", {}, path).textContent = base.names[k];
    if (answer && answer.province === base.names[k]) path.classList.add("chosen");
  });
  if (answer && answer.ground) node("path", { d: area(answer.ground), class: "ground" }, svg);
  const labels = base.labels.map(([lat, lon], k) => {
    const t = node("text", { class: "label" }, svg); t.textContent = base.names[k]; return [t, X(lon), Y(lat)]; });
  const over = node("g", {}, svg);
  const scaleBar = document.createElement("div"); scaleBar.className = "scale"; box.append(scaleBar);
  let truth = null;
  function redraw() {
    svg.setAttribute("viewBox", view.join(" "));
    const shown = svg.getBoundingClientRect(), px = Math.max(view[2] / (shown.width || 1), view[3] / (shown.height || 1));
    for (const [t, x, y] of labels) { t.setAttribute("x", x); t.setAttribute("y", y); t.setAttribute("font-size", 11.5 * px); t.setAttribute("stroke-width", 3 * px);
      t.style.display = ""; }
    // The larger label stays where two meet.
    const taken = [];
    for (const [t] of labels) { const b = t.getBoundingClientRect();
      if (taken.some((o) => b.left < o.right && b.right > o.left && b.top < o.bottom && b.bottom > o.top)) t.style.display = "none"; else taken.push(b); }
    over.replaceChildren();
    if (answer) {
      for (const h of [...answer.hypotheses].reverse()) {
        const c = node("circle", { cx: X(h.lon), cy: Y(h.lat), r: (3 + 13 * Math.sqrt(h.probability)) * px, class: "hypothesis", "stroke-width": 1.2 * px }, over);
        node("title", {}, c).textContent = Math.round(100 * h.probability) + " %, " + h.province;
      }
      const x = X(answer.lon), y = Y(answer.lat);
      if (truth) {
        const [u, v] = [X(truth[1]), Y(truth[0])];
        node("line", { x1: x, y1: y, x2: u, y2: v, class: "gap", "stroke-width": 2 * px, "stroke-dasharray": 6 * px + " " + 4 * px }, over);
        node("circle", { cx: u, cy: v, r: 6.5 * px, class: "truth", "stroke-width": 2 * px }, over);
      }
      // A pin whose point is the place.
      const s = px, pin = "M" + x + " " + y + "c" + -2 * s + " " + -8 * s + " " + -9 * s + " " + -11 * s + " " + -9 * s + " " + -19 * s +
        "a" + 9 * s + " " + 9 * s + " 0 0 1 " + 18 * s + " 0c0 " + 8 * s + " " + -7 * s + " " + 11 * s + " " + -9 * s + " " + 19 * s + "z";
      node("path", { d: pin, class: "pin", "stroke-width": 1.5 * px }, over);
      node("circle", { cx: x, cy: y - 19 * s, r: 3.4 * s, class: "pin-eye" }, over);
    }
    const kmPerPx = px * 111.195; let bar = 1;
    for (const d of [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]) if (d / kmPerPx < 120) bar = d;
    scaleBar.style.width = bar / kmPerPx + "px"; scaleBar.textContent = bar + " km";
  }
  function zoom(factor, x, y) {
    const width = Math.min(whole[2], Math.max(whole[2] / 200, view[2] * factor)), by = width / view[2];
    view = [x - (x - view[0]) * by, y - (y - view[1]) * by, width, view[3] * by];
    if (width === whole[2]) view = [...whole];
    svg.classList.toggle("closer", width < whole[2]);
    redraw();
  }
  const center = () => [view[0] + view[2] / 2, view[1] + view[3] / 2];
  const place = (e) => { const p = new DOMPoint(e.clientX, e.clientY).matrixTransform(svg.getScreenCTM().inverse()); return [p.x, p.y]; };
  const buttons = document.createElement("div"); buttons.className = "zoom"; box.append(buttons);
  const button = (text, title, act) => { const b = document.createElement("button"); b.type = "button"; b.textContent = text; b.title = title;
    b.setAttribute("aria-label", title); b.onclick = act; buttons.append(b); };
  button("+", "zoom in", () => zoom(1 / 1.6, ...(answer && view[2] === whole[2] ? [X(answer.lon), Y(answer.lat)] : center())));
  button("−", "zoom out", () => zoom(1.6, ...center()));
  if (answer) button("◎", "go to the answer", () => { const w = whole[2] / 8, h = whole[3] / 8;
    view = [X(answer.lon) - w / 2, Y(answer.lat) - h / 2, w, h]; svg.classList.add("closer"); redraw(); });
  button("⌂", "whole region", () => { view = [...whole]; svg.classList.remove("closer"); redraw(); });
  svg.addEventListener("wheel", (e) => { if (!e.ctrlKey && document.activeElement !== svg) return; e.preventDefault(); zoom(Math.exp(e.deltaY / 400), ...place(e)); }, { passive: false });
  // One finger scrolls the page while the whole region is shown, and moves the map when closer.
  const held = new Map(); let moved = 0, apart = 0;
  svg.addEventListener("pointerdown", (e) => { held.set(e.pointerId, [e.clientX, e.clientY]); if (held.size === 1) moved = 0; apart = 0; });
  svg.addEventListener("pointermove", (e) => { const before = held.get(e.pointerId); if (!before) return;
    const now = [e.clientX, e.clientY], step = Math.hypot(now[0] - before[0], now[1] - before[1]); moved += step;
    held.set(e.pointerId, now);
    if (held.size === 2) { const [a, b] = [...held.values()], d = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (apart) zoom(apart / d, ...place({ clientX: (a[0] + b[0]) / 2, clientY: (a[1] + b[1]) / 2 })); apart = d; moved = 99; return; }
    if (moved < 5) return;
    if (!svg.hasPointerCapture(e.pointerId)) svg.setPointerCapture(e.pointerId);
    const shown = svg.getBoundingClientRect(), px = Math.max(view[2] / shown.width, view[3] / shown.height);
    if (view[2] < whole[2]) { view[0] -= (now[0] - before[0]) * px; view[1] -= (now[1] - before[1]) * px; redraw(); } });
  const release = (e) => { const was = held.delete(e.pointerId); if (!was || e.type !== "pointerup" || moved > 5 || !answer) return;
    const [x, y] = place(e); say([latOf(y), lonOf(x)]); };
  svg.addEventListener("pointerup", release); svg.addEventListener("pointercancel", (e) => held.delete(e.pointerId));
  svg.addEventListener("keydown", (e) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    if (steps && view[2] < whole[2]) { view[0] += steps[0] * view[2] / 10; view[1] += steps[1] * view[3] / 10; redraw(); e.preventDefault(); }
    if (e.key === "+" || e.key === "=") zoom(1 / 1.4, ...center()); if (e.key === "-") zoom(1.4, ...center()); });
  const room = box.closest(".geopak-answer");
  const told = room && room.querySelector(".told"), typed = room && room.querySelector(".typed");
  function say(latlon) {
    truth = latlon;
    const error = kilometres(latlon, [answer.lat, answer.lon]);
    const within = error <= answer.confidence_km ? ", within" : ", not within";
    told.textContent = inWords(error) + " km off" + within + " the " + answer.confidence_km + " km that the confidence is about";
    told.dataset.km = error; typed.value = latlon[0].toFixed(4) + ", " + latlon[1].toFixed(4);
    typed.removeAttribute("aria-invalid"); redraw();
  }
  if (typed) typed.onchange = () => {
    const m = typed.value.match(/^\s*(-?\d+(?:\.\d+)?)\s*[,; ]\s*(-?\d+(?:\.\d+)?)\s*$/);
    if (m && Math.abs(m[1]) <= 90 && Math.abs(m[2]) <= 180) say([+m[1], +m[2]]);
    else { typed.setAttribute("aria-invalid", "true"); told.textContent = "Please write latitude and longitude in degrees, such as 31.52, 74.35"; } };
  redraw();
  new ResizeObserver(redraw).observe(svg);
}

async function look() {
  for (const box of document.querySelectorAll(".geopak-map:not([data-drawn])")) {
    box.dataset.drawn = "1";
    await asked;
    draw(box);
  }
}
// A picture that is pasted anywhere on the page goes where a chosen one goes.
const shown = (selector) => { const e = document.querySelector(selector); return e && e.offsetParent !== null ? e : null; };
document.addEventListener("paste", (e) => {
  const files = [...(e.clipboardData ? e.clipboardData.files : [])].filter((f) => f.type.startsWith("image/"));
  const many = shown("#photos"), room = many || shown("#photo");
  const input = room && room.querySelector("input[type=file]");
  if (!files.length || !input) return;
  e.preventDefault();
  const given = new DataTransfer();
  for (const f of many ? files : files.slice(0, 1)) given.items.add(f);
  input.files = given.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});
const begin = () => { new MutationObserver(look).observe(document.body, { childList: true, subtree: true }); look(); };
if (document.body) begin(); else document.addEventListener("DOMContentLoaded", begin);
})();
