"use strict";
const at = id => document.getElementById(id);
const part = (card, name) => card.node.querySelector("." + name);
const make = (tag, properties, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const percent = p => p >= 0.9995 ? "100%" : (100 * p).toFixed(1) + "%";
const images = n => n === 1 ? "1 image" : n + " images";
const SAMPLES = ["cat", "cup", "frog", "rocket", "ship"]; // classes of which the service has an image to try
const mayPass = status => status < 400 || status >= 500 || status === 408 || status === 429; // the same request may succeed later; 0 is no reply at all
let limits = { max_batch: 32, max_body_bytes: 10e6 }; // of one request, until the service has said its own
let sets = ""; // asks for the classes that an image could be, if the model has thresholds for such sets
let operatingPoint = null; // from which probability on the model says a class, if it has been told

let cards = []; // one per image, in order
let stop = new AbortController(); // only the newest images may show their answers
let key = ""; // kept nowhere else
let keyWanted = null; // requests that wait for a key: a promise, and the function that fulfils it
let stream = null; // of the camera

function complain(text) {
  at("error").textContent = text;
  at("again").hidden = !cards.some(card => card.waitsFor);
  at("trouble").hidden = false;
  at("status").textContent = "";
}

// The key

function askForKey(refused) {
  if (!keyWanted) {
    keyWanted = {};
    keyWanted.typed = new Promise(resolve => { keyWanted.resolve = resolve; });
    at("key-said").textContent = refused ? "That key was not accepted. Is it typed correctly?" : "This service needs an API key.";
    at("key-form").hidden = false;
    if (refused) { at("key").focus(); at("key").select(); }
  }
  return keyWanted.typed;
}

at("key-form").addEventListener("submit", event => {
  event.preventDefault();
  if (/[^\x20-\xff]/.test(at("key").value)) { at("key-said").textContent = "A key cannot have such characters. Is it typed correctly?"; return; }
  key = at("key").value;
  at("key-said").textContent = "Trying this key …";
  keyWanted?.resolve();
  keyWanted = null;
});

function closeKey() {
  if (at("key-form").hidden || keyWanted) return;
  if (at("key-form").contains(document.activeElement)) at("choose").focus();
  at("key").value = "";
  at("key-form").hidden = true;
}

// Requests

// What the service says: its answer, or {detail, status}. While it wants a key, the request waits for one and is sent again.
async function call(path, options) {
  for (;;) {
    const sent = key;
    const late = AbortSignal.timeout(180_000); // longer than the service waits for a body
    const reply = await fetch(path, { ...options, signal: options?.signal ? AbortSignal.any([late, options.signal]) : late, headers: sent ? { "X-API-Key": sent } : {} }).catch(() => null);
    if (reply?.status === 401) {
      if (sent === key) await askForKey(sent);
      continue;
    }
    if (!options?.signal?.aborted) closeKey();
    const said = await reply?.json().catch(() => null);
    if (reply?.ok && said) return said;
    return { detail: said?.detail ?? (reply ? `the server sent only the status ${reply.status}` : "the server did not answer, is it still running?"), status: reply?.ok ? 0 : reply?.status ?? 0 };
  }
}

function formOf(field, group) {
  const form = new FormData();
  for (const card of group) form.append(field, card.file);
  return { method: "POST", body: form, signal: stop.signal };
}

async function ask(group) {
  const options = formOf("files", group), said = await call(`predict/batch?view=true${sets}`, options);
  if (options.signal.aborted) return;
  if (!Array.isArray(said) && (said.status === 408 || !mayPass(said.status)) && group.length > 1) { // too much for one request: in two
    const half = group.length >> 1;
    await ask(group.slice(0, half));
    if (!options.signal.aborted) await ask(group.slice(half));
    return;
  }
  group.forEach((card, i) => {
    const answer = Array.isArray(said) ? said[i] : said;
    if (answer.class_name === undefined) fail(card, answer);
    else show(card, answer);
  });
}

function inGroups(wanted) {
  const groups = [[]], bytes = 0.8 * limits.max_body_bytes; // the form adds some to the files
  let size = 0;
  for (const card of wanted) {
    if (groups.at(-1).length === limits.max_batch || (size && size + card.file.size > bytes)) { groups.push([]); size = 0; }
    groups.at(-1).push(card);
    size += card.file.size;
  }
  return groups;
}

async function classify(wanted) {
  const { signal } = stop;
  for (const card of wanted) card.waitsFor = "";
  at("trouble").hidden = true;
  at("status").textContent = `Looking at ${images(wanted.length)} …`;
  const readable = await Promise.all(wanted.map(card => card.file.slice(0, 1).arrayBuffer().then(() => true, () => false)));
  if (signal.aborted) return;
  wanted.forEach((card, i) => { if (!readable[i]) fail(card, { detail: "it cannot be read; is it a folder?", status: 400 }); });
  for (const group of inGroups(wanted.filter((_, i) => readable[i]))) {
    if (group.length) await ask(group);
    if (signal.aborted) return;
  }
  const answered = cards.filter(card => card.answer), waiting = cards.filter(card => card.waitsFor);
  at("status").textContent = cards.length > 1 ? `${answered.length} of ${images(cards.length)} answered.`
    : answered.length ? `${part(cards[0], "answer").textContent}. Answered in ${cards[0].answer.inference_ms.toFixed(1)} ms in the network.` : "";
  if (waiting.length) complain(`There is no answer for ${images(waiting.length)} yet: ${waiting[0].waitsFor}. Please try again.`);
}

// Cards

function newCard(file) {
  const card = { file, node: at("card").content.firstElementChild.cloneNode(true), url: URL.createObjectURL(file), answer: null, waitsFor: "" };
  const sent = part(card, "sent");
  part(card, "answer").textContent = file.name || "The image";
  part(card, "name").textContent = "No answer yet.";
  sent.alt = `The image that you sent, ${file.name}`;
  sent.addEventListener("error", () => { sent.parentElement.hidden = true; });
  sent.src = card.url;
  part(card, "explain").addEventListener("click", () => explain(card));
  part(card, "correct").addEventListener("submit", event => { event.preventDefault(); correct(card); });
  return card;
}

function fail(card, { detail, status }) {
  card.waitsFor = mayPass(status) ? detail : "";
  if (card.waitsFor) return;
  part(card, "name").textContent = "";
  part(card, "problem").textContent = `${card.file.name || "The image"} was not accepted: ${detail}`;
}

function fillBars(table, ranked) {
  table.tBodies[0].replaceChildren(...ranked.map(([name, p]) => {
    const bar = make("div", { className: "bar" });
    bar.style.width = 100 * p + "%";
    return make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", {}, bar), make("td", { textContent: percent(p) }));
  }));
}

function show(card, answer) {
  const ranked = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]), rest = ranked.slice(10), seen = part(card, "seen");
  card.answer = answer;
  card.waitsFor = "";
  part(card, "answer").textContent = `${answer.class_name}, ${percent(answer.confidence)}`;
  part(card, "decision").hidden = answer.decision == null;
  part(card, "decision").textContent = `Decision: ${answer.decision}${operatingPoint ? `. This model says “${operatingPoint.class_name}” from a probability of ${+(100 * operatingPoint.threshold).toPrecision(2)}% on.` : ""}`;
  // About an image unlike those of the model, such a set promises nothing
  part(card, "could-be").hidden = !(answer.prediction_set?.length > 1) || answer.in_distribution === false;
  part(card, "could-be").textContent = `With ${100 * answer.coverage}% confidence it is one of: ${answer.prediction_set?.join(", ")}.`;
  part(card, "name").textContent = card.file.name;
  part(card, "unknown").hidden = answer.in_distribution !== false;
  seen.src = answer.view;
  const decided = answer.tiles > 1 ? `; square ${answer.tile} of ${answer.tiles} decided` : "";
  const frame = answer.frame > 1 ? `; frame ${answer.frame} of the animation` : "";
  seen.decode().then(() => { seen.nextElementSibling.textContent = `as the model sees it, ${seen.naturalWidth}\u00a0×\u00a0${seen.naturalHeight}${frame}${decided}`; }).catch(() => {});
  part(card, "view").hidden = false;
  fillBars(part(card, "bars"), ranked.slice(0, 10));
  part(card, "rest").hidden = !rest.length;
  part(card, "rest").firstElementChild.textContent = `the other ${rest.length} classes`;
  fillBars(part(card, "rest").querySelector("table"), rest);
  part(card, "details").hidden = false;
  offerCorrection(card);
}

// A correction, where the service saves them

function offerCorrection(card) {
  const others = Object.keys(card.answer.probabilities).filter(name => name !== card.answer.class_name);
  part(card, "correct").hidden = !limits.corrections;
  if (!limits.corrections) return;
  part(card, "right").replaceChildren(...["", ...others].map(name => make("option", { value: name, textContent: name || "choose …" })));
}

async function correct(card) {
  const button = part(card, "correct").querySelector("button"), name = part(card, "right").value;
  if (!name || button.ariaDisabled === "true") return;
  button.ariaDisabled = "true";
  const said = await call(`corrections?class_name=${encodeURIComponent(name)}`, formOf("file", [card]));
  button.ariaDisabled = "false";
  part(card, "corrected").textContent = said.file ? `Saved as “${said.class_name}”. Thank you.` : `It was not saved: ${said.detail}.`;
}

async function explain(card) {
  const button = part(card, "explain"), where = part(card, "where"), overlay = part(card, "overlay");
  if (button.ariaDisabled === "true") return; // it has been requested
  if (!overlay.src) {
    button.ariaDisabled = "true";
    const answer = await call("explain", formOf("file", [card]));
    button.ariaDisabled = "false";
    part(card, "problem").textContent = answer.overlay ? "" : `The service cannot show where the model looked: ${answer.detail}${mayPass(answer.status) ? ". Please try again." : ""}`;
    if (!answer.overlay) return;
    overlay.src = answer.overlay;
    overlay.alt = `The image, with the regions in red that supported “${answer.class_name}”`;
  }
  where.hidden = !where.hidden;
  button.ariaExpanded = String(!where.hidden);
}

function take(files) {
  if (!files.length) { complain("There is no image in that."); return; }
  stop.abort();
  stop = new AbortController();
  for (const card of cards) URL.revokeObjectURL(card.url);
  cards = [...files].map(newCard);
  at("results").replaceChildren(...cards.map(card => card.node));
  classify(cards);
}

// Sample images, of classes that the model knows

async function trySample(name) {
  const reply = await fetch(`static/samples/${name}.jpg`).catch(() => null);
  if (!reply?.ok) { complain("The sample image did not arrive. Is the service still running?"); return; }
  take([new File([await reply.blob()], `${name}.jpg`, { type: "image/jpeg" })]);
}

function offerSamples(classes) {
  const known = limits.formats.includes("JPEG") ? SAMPLES.filter(name => classes.includes(name)) : [];
  at("samples").hidden = !known.length;
  at("samples").lastElementChild.replaceChildren(...known.map(name => {
    const button = make("button", { type: "button", className: "plain" }, make("img", { src: `static/samples/${name}.jpg`, alt: `the sample image ${name}` }));
    button.addEventListener("click", () => trySample(name));
    return button;
  }));
}

// The camera

async function openCamera() {
  at("open-camera").disabled = true;
  if (at("again").hidden) at("trouble").hidden = true;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    at("camera").hidden = false;
    at("video").srcObject = stream;
    stream.getTracks()[0].addEventListener("ended", closeCamera); // unplugged
    at("shoot").focus();
  } catch (problem) {
    closeCamera();
    const why = { NotAllowedError: "the browser does not allow it for this page; you may be able to allow it next to the address", NotFoundError: "no camera was found" }[problem.name];
    complain(`The camera cannot be used: ${why ?? problem.message}.`);
  }
}

function closeCamera() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = at("video").srcObject = null;
  at("camera").hidden = true;
  at("open-camera").disabled = false;
  at("open-camera").focus();
}

function shoot() {
  const canvas = document.createElement("canvas"), video = at("video");
  if (!video.videoWidth) return; // it shows nothing yet
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  closeCamera();
  canvas.toBlob(blob => take([new File([blob], "camera.jpg", { type: blob.type })]), "image/jpeg", 0.95);
}

navigator.mediaDevices?.enumerateDevices().then(all => { at("open-camera").hidden = !all.some(device => device.kind === "videoinput"); }).catch(() => {});
at("open-camera").addEventListener("click", openCamera);
at("close-camera").addEventListener("click", closeCamera);
at("shoot").addEventListener("click", shoot);
at("camera").addEventListener("keydown", event => { if (event.key === "Escape") closeCamera(); });

at("again").addEventListener("click", () => { at("status").focus(); classify(cards.filter(card => card.waitsFor)); });
at("choose").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", () => { if (at("file").files.length) take(at("file").files); at("file").value = ""; });
for (const kind of ["dragenter", "dragover"]) addEventListener(kind, event => { event.preventDefault(); at("drop").classList.add("over"); });
for (const kind of ["dragleave", "drop"]) addEventListener(kind, event => { event.preventDefault(); at("drop").classList.remove("over"); });
addEventListener("drop", event => take(event.dataTransfer.files));
addEventListener("paste", event => { if (event.target !== at("key")) take(event.clipboardData.files); });

async function introduce() {
  const card = await call("model");
  if (!card.classes) {
    at("model").textContent = "The service has no model yet.";
    if (mayPass(card.status)) setTimeout(introduce, 2000); // it may still be loading
    return;
  }
  limits = card.limits;
  operatingPoint = card.operating_point;
  sets = card.set_thresholds ? "&coverage=0.9" : "";
  if (limits.corrections) at("kept").textContent = "They are classified, and kept only if you save one as a correction.";
  for (const one of cards) if (one.answer) offerCorrection(one);
  const types = { "JPEG 2000": ".jp2,.j2k", PPM: ".ppm,.pgm,.pbm", HEIC: "image/heic,.heic" };
  at("formats").textContent = new Intl.ListFormat("en", { type: "disjunction" }).format(limits.formats).replace(", or", " or");
  at("file").accept = limits.formats.map(name => types[name] ?? `image/${name.toLowerCase()}`).join();
  const score = card.test_accuracy === null ? "" : `; its test accuracy is ${percent(card.test_accuracy)}`;
  offerSamples(card.classes);
  at("model").textContent = `The model knows ${card.classes.length} classes (${card.classes.slice(0, 10).join(", ")}${card.classes.length > 10 ? ", …" : ""})${score}.`;
}

introduce();
