"use strict";
const at = id => document.getElementById(id);
const percent = p => p >= 0.9995 ? "100%" : (100 * p).toFixed(1) + "%";
let latest = 0; // only the newest picture may show its answer

function complain(text) {
  at("error").textContent = text;
  at("error").hidden = false;
  at("result").hidden = true;
  at("status").textContent = "";
}

function show(answer) {
  at("error").hidden = true;
  at("answer").textContent = `${answer.class_name}, ${percent(answer.confidence)}`;
  at("unsure").hidden = answer.in_distribution !== false;
  at("seen").src = answer.view;
  at("seen").decode().then(() => { at("seen-size").textContent = `as the model sees it, ${at("seen").naturalWidth} × ${at("seen").naturalHeight}`; }).catch(() => {});
  at("bars").tBodies[0].replaceChildren(...Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]).map(([name, p], i) => {
    const row = document.createElement("tr"), head = document.createElement("th"), middle = document.createElement("td"), end = document.createElement("td"), bar = document.createElement("div");
    head.scope = "row";
    head.textContent = name;
    bar.className = "bar";
    bar.style.width = 100 * p + "%";
    end.textContent = percent(p);
    row.className = i ? "" : "first";
    middle.append(bar);
    row.append(head, middle, end);
    return row;
  }));
  at("status").textContent = `Answered in ${answer.inference_ms.toFixed(1)} ms in the network.`;
  at("result").hidden = false;
}

async function classify(file) {
  const mine = ++latest;
  at("error").hidden = true;
  at("status").textContent = "Looking …";
  const form = new FormData();
  form.append("file", file);
  let reply, answer;
  try {
    reply = await fetch("predict?view=true", { method: "POST", body: form });
    answer = await reply.json();
  } catch {
    if (mine === latest) complain("The server did not answer. Is it still running?");
    return;
  }
  if (mine !== latest) return;
  if (!reply.ok) return complain(`${file.name || "The picture"} was not accepted: ${answer.detail}`);
  URL.revokeObjectURL(at("sent").src);
  at("sent").src = URL.createObjectURL(file);
  show(answer);
}

function take(files) {
  const file = [...files][0];
  if (file) classify(file);
  else { latest++; complain("There is no picture in that."); }
}

at("choose").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", () => { if (at("file").files.length) take(at("file").files); at("file").value = ""; });
for (const kind of ["dragenter", "dragover"]) addEventListener(kind, event => { event.preventDefault(); at("drop").classList.add("over"); });
for (const kind of ["dragleave", "drop"]) addEventListener(kind, event => { event.preventDefault(); at("drop").classList.remove("over"); });
addEventListener("drop", event => take(event.dataTransfer.files));
addEventListener("paste", event => take(event.clipboardData.files));

fetch("model").then(reply => reply.ok ? reply.json() : Promise.reject()).then(card => {
  const score = card.test_accuracy === null ? "" : `; right on ${percent(card.test_accuracy)} of its test pictures`;
  at("model").textContent = `The model knows ${card.classes.length} classes (${card.classes.slice(0, 10).join(", ")}${card.classes.length > 10 ? ", …" : ""})${score}.`;
}).catch(() => { at("model").textContent = "There is no model behind this page yet."; });
