// What every part of the page needs.

export const $ = id => document.getElementById(id);

export function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

export function say(where, text, isError = false) {
  $(where).textContent = text;
  $(where).classList.toggle("error", isError);
}

export async function ask(address, options) {
  try {
    return await fetch(address, options);
  } catch {
    throw new Error(
      "The computer that served this page no longer answers: start its command again.");
  }
}

// One thing at a time: measuring would be disturbed by anything else.
let last = Promise.resolve();
export function inTurn(work, where) {
  last = last.then(work).catch(error => say(where, `${error.message ?? error}`, true));
}
