// Buttons that copy a block of code.

import { byId } from "./dom.js";

async function copy(block) {
  try {
    await navigator.clipboard.writeText(block.textContent);
    return true;
  } catch {
    // No clipboard without TLS, or it is not allowed: the text is at least marked.
    getSelection().selectAllChildren(block);
    return document.execCommand("copy");
  }
}

export function startCopying() {
  for (const button of document.querySelectorAll("[data-copies]")) {
    const said = button.firstChild;
    button.addEventListener("click", async () => {
      said.data = (await copy(byId(button.dataset.copies))) ? "Copied" : "Press Ctrl-C";
      setTimeout(() => (said.data = "Copy"), 2000);
    });
  }
}
