// One section at a time, by the address's fragment: links, the back button and bookmarks work as they do anywhere.

import { byId } from "./dom.js";

const links = [...document.querySelectorAll("nav a")];
const names = links.map((link) => link.hash.slice(1));

export const current = () => (names.includes(location.hash.slice(1)) ? location.hash.slice(1) : names[0]);

// Calls `onShow(name)` for the section that is shown, now and whenever it changes.
export function startNavigation(onShow) {
  function show(focus) {
    const name = current();
    for (const other of names) byId(other).hidden = other !== name;
    for (const link of links) {
      if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.title = `${links[names.indexOf(name)].textContent} – laplora`;
    if (focus) {
      // The browser jumps to the section itself, which would hide the header.
      scrollTo(0, 0);
      byId(`${name}-title`).focus({ preventScroll: true });
    }
    onShow(name);
  }
  addEventListener("hashchange", () => show(true));
  // Past the navigation, in the section that is shown: no other address, which the back button would come by.
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("content").focus();
  });
  show(false);
}
