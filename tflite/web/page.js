// What every part of the page needs.

export const $ = id => document.getElementById(id);

export function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

export function setStatus(id, text, isError = false) {
  $(id).textContent = text;
  $(id).classList.toggle("error", isError);
}

export async function fetchFromServer(address, options) {
  try {
    return await fetch(address, options);
  } catch {
    throw new Error(
      "The computer that served this page no longer answers: start its command again.");
  }
}

// Runs one task at a time: another task would disturb a measurement. Shows an error in
// the element `id`.
let last = Promise.resolve();
export function runExclusive(task, id) {
  last = last.then(task).catch(error => setStatus(id, `${error.message ?? error}`, true));
}
