"use strict";
// Shared by every page. The data of the page, as plain values.
const pageData = () => JSON.parse(document.getElementById("data").textContent);
// The bytes of a base64 text, whose buffer serves typed arrays too.
const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
// A button copies the text that it is given at the time.
const copiesOnClick = (button, text) => button.addEventListener("click", async () => {
  try { await navigator.clipboard.writeText(text()); button.textContent = "Copied"; } catch { button.textContent = "Not allowed"; }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
});

// A button with the id "theme" goes from the system's choice of light or dark to the other one, and back.
(() => {
  const button = document.getElementById("theme");
  if (!button) return;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : system.matches;
  };
  const label = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", isDark() ? "Light colours" : "Dark colours");
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    label();
  });
  system.addEventListener("change", label);
  label();
})();
