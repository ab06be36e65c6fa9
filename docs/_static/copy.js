// A button on each block of code that copies it.  Of what a terminal shows, it copies the commands.
document.addEventListener("DOMContentLoaded", () => {
  for (const block of document.querySelectorAll("div.highlight")) {
    const button = document.createElement("button");
    button.className = "copy";
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-live", "polite");
    button.addEventListener("click", async () => {
      const text = block.querySelector("pre").innerText;
      const commands = text.split("\n").filter((line) => line.startsWith("$ "));
      const copied = commands.length ? commands.map((line) => line.slice(2)).join("\n") : text;
      try {
        await navigator.clipboard.writeText(copied);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Not allowed here"; // as for a page that is not served over HTTPS
      }
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
    block.append(button);
  }
});
