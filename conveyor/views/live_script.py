"""The script of the page: it takes events, and puts newer parts in the place of older ones.

Law: it decides nothing and knows no address.  What a reader has opened or scrolled stays so.
"""

SCRIPT = """
"use strict";
(function () {
  const SPEAK_SECONDS = 15, find = (id) => document.getElementById(id);
  const source = new EventSource("events" + location.search);
  const graph = find("graph");
  let spoken = 0, state = "";
  graph.scrollLeft = (graph.scrollWidth - graph.clientWidth) / 2;

  function replace(id, part) {
    const old = find(id);
    if (!old) return;
    const open = new Set();
    old.querySelectorAll("details[open]").forEach((each) => open.add(each.dataset.key));
    const scrolled = Array.from(old.querySelectorAll(".wide"), (each) => each.scrollLeft);
    old.innerHTML = part;
    old.querySelectorAll("details").forEach((each) => { each.open = open.has(each.dataset.key); });
    old.querySelectorAll(".wide").forEach((each, index) => { each.scrollLeft = scrolled[index] || 0; });
  }

  function lost(text) {
    const place = find("lost");
    if (place.textContent !== text) place.textContent = text;
    place.hidden = !text;
  }

  function take(told) {
    for (const id of Object.keys(told.parts)) replace(id, told.parts[id]);
    document.title = told.title;
    const now = Date.now() / 1000;
    // A screen reader is not to talk all the time.
    if (told.state !== state || now > spoken + SPEAK_SECONDS) {
      state = told.state;
      spoken = now;
      find("spoken").textContent = told.said;
    }
    lost("");
  }

  source.onmessage = (event) => take(JSON.parse(event.data));
  source.addEventListener("end", (event) => {
    source.close();
    take(JSON.parse(event.data));
    lost("The page has ended with the pipeline. These are the last numbers.");
  });
  source.onerror = () => {
    const again = source.readyState === EventSource.CONNECTING ? "It is tried again." : "Reload the page to try again.";
    lost("There is no connection to the pipeline: the numbers are old. " + again);
  };
})();
"""
