// Runs before the first paint (a plain script), so that a chosen theme does not flash the other one.
(() => {
  try {
    const { theme } = JSON.parse(localStorage.getItem("gemworks-preferences") ?? "{}");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // no storage, or not ours: the system's theme
  }
})();
