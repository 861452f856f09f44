/* Names what Django's admin pages leave without a name, for who does not see them. */
"use strict";

window.addEventListener("load", () => {
  // Both fields of a moment stand behind a word, but in no label, and what they are about is not told of either.
  for (const input of document.querySelectorAll("p.datetime input")) {
    const row = input.closest(".form-row, fieldset");
    const about = row && row.querySelector("legend, label");
    const names = [about, input.previousSibling].map((each) => (each ? each.textContent : "").replace(":", "").trim());
    input.setAttribute("aria-label", names.filter(Boolean).join(", "));
  }
  // A sign that has a name must be something, and "span" is nothing.
  for (const sign of document.querySelectorAll("span.help-tooltip[aria-label]")) sign.setAttribute("role", "img");
});
