// Before anything is drawn: the theme that the reader chose, if any.
try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // No memory: the system's theme it is.
}
