// What people do on a page: filter, turn a page, copy, confirm, send a form. Each works by attributes of the HTML:
//
//   form[data-filters=ID]     its fields are part of the page's address; fragment ID follows while they are typed
//   a[data-turns=ID]          its query becomes part of the page's; fragment ID follows
//   [data-finds=ID]           shows only the rows of table ID that have what is typed in it
//   [data-copy]               copies its value, or with data-copy-from the text of the element that it names
//   [data-opens=ID]           opens a dialog, with data-address as its form's action and data-what as its [data-what]
//   [data-closes]             closes its dialog
//   button[data-needs=N]      can be pressed when N boxes of its form are chosen
//   form[data-sends]          is sent in the background; the page shows the result

const TYPING_MS = 250;

function refresh(id) {
  document.dispatchEvent(new CustomEvent("refresh", { detail: id }));
}

function setQuery(query) {
  const text = query.toString();
  history.replaceState(null, "", location.pathname + (text ? `?${text}` : "") + location.hash);
}

let typing = null;

function filter(form) {
  const query = new URLSearchParams(location.search);
  // Another filter begins at the first page.
  for (const name of (form.dataset.resets ?? "").split(" ")) query.delete(name);
  for (const field of form.elements) if (field.name) query.delete(field.name);
  for (const [name, value] of new FormData(form)) if (value !== "") query.append(name, value);
  setQuery(query);
  refresh(form.dataset.filters);
}

for (const what of ["input", "change"]) {
  document.addEventListener(what, (event) => {
    const form = event.target.closest("form[data-filters]");
    if (!form) return;
    clearTimeout(typing);
    const typed = what === "input" && event.target.matches("input[type=search], input[type=text], input[type=number]");
    typing = setTimeout(() => filter(form), typed ? TYPING_MS : 0);
  });
}

function enable() {
  for (const button of document.querySelectorAll("button[data-needs]")) {
    button.disabled = button.form.querySelectorAll("input:checked").length < Number(button.dataset.needs);
  }
}
// A fragment comes with a button for browsers without scripts; going back restores boxes.
for (const [where, what] of [[document, "change"], [document, "fragment"], [window, "pageshow"]]) {
  where.addEventListener(what, enable);
}
enable();

// A refresh leaves a form alone from the first key on until it was sent.
document.addEventListener("input", (event) => {
  const form = event.target.closest("form[data-sends]");
  if (!form) return;
  form.dataset.typed = "";
  form.querySelector("[role=status]").textContent = "";
});

document.addEventListener("input", (event) => {
  const field = event.target.closest("[data-finds]");
  if (!field) return;
  const words = field.value.trim().toLowerCase();
  for (const row of document.querySelectorAll(`#${field.dataset.finds} tbody tr`)) {
    row.hidden = !row.textContent.toLowerCase().includes(words);
  }
});

document.addEventListener("change", (event) => {
  const box = event.target.closest("[data-shows-differences]");
  if (!box) return;
  document.getElementById(box.dataset.showsDifferences).classList.toggle("only-differences", box.checked);
});

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (form.matches("form[data-filters]")) {
    event.preventDefault();
    clearTimeout(typing);
    filter(form);
  } else if (form.matches("form[data-sends]")) {
    event.preventDefault();
    await send(form, event.submitter);
  }
});

async function send(form, button) {
  const says = form.querySelector("[role=status]");
  if (button) button.disabled = true;
  if (says) says.textContent = "";
  try {
    const body = new URLSearchParams(new FormData(form));
    const answer = await fetch(form.getAttribute("action"), { method: "POST", body, redirect: "manual" });
    // A redirect is how the hub says "done" to a browser without scripts.
    if (answer.type === "opaqueredirect" || answer.ok) {
      form.closest("dialog")?.close();
      delete form.dataset.typed;
      if (says) says.textContent = form.dataset.sends;
      refresh();
    } else if (answer.status === 401) {
      location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
    } else {
      const problem = await answer.json();
      throw new Error(problem.message ?? `the hub answered ${answer.status}`);
    }
  } catch (error) {
    if (says) says.textContent = error instanceof TypeError ? "the hub is not reachable: try again" : error.message;
  } finally {
    if (button) button.disabled = false;
  }
}

document.addEventListener("click", (event) => {
  const target = event.target.closest?.("a[data-turns], [data-copy], [data-copy-from], [data-opens], [data-closes]");
  if (!target) return;
  if (target.matches("a[data-turns]")) {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    const query = new URLSearchParams(location.search);
    for (const [name, value] of new URL(target.href).searchParams) query.set(name, value);
    setQuery(query);
    refresh(target.dataset.turns);
  } else if (target.matches("[data-opens]")) {
    open(target);
  } else if (target.matches("[data-closes]")) {
    target.closest("dialog").close();
  } else {
    copy(target);
  }
});

function open(button) {
  const dialog = document.getElementById(button.dataset.opens);
  const form = dialog.querySelector("form");
  if (button.dataset.address) form.action = button.dataset.address;
  const what = dialog.querySelector("[data-what]");
  if (what && button.dataset.what) what.textContent = button.dataset.what;
  const says = dialog.querySelector("[role=status]");
  if (says) says.textContent = "";
  dialog.showModal();
}

async function copy(button) {
  const from = button.dataset.copyFrom;
  const text = from ? document.getElementById(from).textContent : button.dataset.copy;
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Only pages of https and of localhost have a clipboard; a hub in a cluster is often neither.
    done = copyBySelection(text);
  }
  const before = button.dataset.before ?? button.textContent;
  button.dataset.before = before;
  button.textContent = done ? "copied" : "not copied";
  setTimeout(() => {
    button.textContent = before;
  }, 1500);
}

function copyBySelection(text) {
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "unseen";
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done;
}
