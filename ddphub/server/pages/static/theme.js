// Light or dark: what the system prefers, or what was chosen here. Runs before the first paint, so nothing flashes.
(() => {
  const root = document.documentElement;
  const choices = ["system", "light", "dark"];
  let stored = null;
  try {
    stored = localStorage.getItem("theme");
  } catch {
    // Storage may be switched off: then the choice lasts as long as the page.
  }

  function choose(theme) {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
  }
  choose(choices.includes(stored) ? stored : "system");

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.querySelector("[data-theme-switch]");
    const shown = () => root.dataset.theme ?? "system";
    const label = () => {
      button.textContent = `Theme: ${shown()}`;
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      const theme = choices[(choices.indexOf(shown()) + 1) % choices.length];
      choose(theme);
      try {
        localStorage.setItem("theme", theme);
      } catch {
        // As above.
      }
      label();
      // Charts are painted, not styled: they paint again.
      document.dispatchEvent(new CustomEvent("theme"));
    });
    label();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    document.dispatchEvent(new CustomEvent("theme"));
  });
})();
