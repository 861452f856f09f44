/* What the pages do with JavaScript: dialogs, relative times, live parts. Everything works without it, too. */
"use strict";

(function () {
  document.documentElement.classList.add("js");
  const $ = (selector, root) => (root || document).querySelector(selector);
  const all = (selector, root) => Array.from((root || document).querySelectorAll(selector));

  /* --- Relative times ------------------------------------------------------------------------- */

  const STEPS = [[60, 1, "s"], [3600, 60, "min"], [86400, 3600, "h"], [86400 * 30, 86400, "d"]];

  function ago(seconds) {
    if (seconds < 2) return "just now";
    for (const [below, unit, word] of STEPS) {
      if (seconds < below) return Math.floor(seconds / unit) + " " + word + " ago";
    }
    return null;
  }

  function ahead(seconds) {
    if (seconds < 1) return "now";
    for (const [below, unit, word] of STEPS) {
      if (seconds < below) return "in " + Math.floor(seconds / unit) + " " + word;
    }
    return null;
  }

  function tellTimes(root) {
    const now = Date.now();
    for (const time of all("time[data-ago], time[data-due]", root)) {
      const at = new Date(time.dateTime);
      if (!time.title) time.title = at.toLocaleString() + " (" + time.textContent.trim() + ")";
      const seconds = (now - at.getTime()) / 1000;
      const text = ("due" in time.dataset ? ahead(-seconds) : ago(seconds)) || at.toLocaleDateString();
      if (time.textContent !== text) time.textContent = text;
    }
  }

  /* --- How long a step takes so far, by the time that passes here: clocks may differ ------------- */

  const shownAt = new WeakMap();

  function duration(seconds) {
    if (seconds < 60) return Math.floor(seconds) + " s";
    const [big, small, unit, rest] = seconds < 3600 ? [60, 1, "min", "s"] : [3600, 60, "h", "min"];
    return Math.floor(seconds / big) + " " + unit + " " + Math.floor((seconds % big) / small) + " " + rest;
  }

  function tellSeconds() {
    for (const each of all("[data-seconds]")) {
      const told = shownAt.get(each);
      if (!told || told.text !== each.dataset.seconds) {
        shownAt.set(each, { text: each.dataset.seconds, at: performance.now() });
      } else {
        each.textContent = duration(Number(told.text) + (performance.now() - told.at) / 1000);
      }
    }
  }

  /* --- Morphing: make a part look like new HTML and keep what somebody is at ------------------- */

  const KEPT = { INPUT: ["checked", "value"], TEXTAREA: ["value"], SELECT: ["value"], DETAILS: ["open"] };

  // Not `.id`: of a form that has an input named "id", that would be the input.
  const idOf = (node) => (node.nodeType === 1 && node.getAttribute("id")) || "";

  function alike(one, other) {
    return one.nodeType === other.nodeType && one.nodeName === other.nodeName && idOf(one) === idOf(other);
  }

  function morph(old, fresh) {
    if (old.nodeType !== 1) {
      if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
      return;
    }
    if (old.hasAttribute("data-keep")) return;
    for (const { name } of Array.from(old.attributes)) {
      if (!fresh.hasAttribute(name) && !(KEPT[old.nodeName] || []).includes(name) && name !== "title") old.removeAttribute(name);
    }
    for (const { name, value } of Array.from(fresh.attributes)) {
      if (old.getAttribute(name) !== value && !(KEPT[old.nodeName] || []).includes(name)) old.setAttribute(name, value);
    }
    if (old.nodeName === "TIME" && old.dateTime !== fresh.dateTime) old.removeAttribute("title");
    morphChildren(old, fresh);
  }

  function morphChildren(old, fresh) {
    const byId = new Map(Array.from(old.children).filter(idOf).map((child) => [idOf(child), child]));
    let place = old.firstChild;
    for (const wanted of Array.from(fresh.childNodes)) {
      const moved = idOf(wanted) && byId.get(idOf(wanted));
      if (moved && moved !== place) old.insertBefore(moved, place);
      const here = moved || place;
      if (here && alike(here, wanted)) {
        morph(here, wanted);
        place = here.nextSibling;
      } else {
        old.insertBefore(wanted, place);
      }
    }
    while (place) {
      const next = place.nextSibling;
      place.remove();
      place = next;
    }
  }

  // What can be scrolled must be reached by the keyboard; what cannot must not be in its way.
  function markScrollers(root) {
    for (const box of all(".scroll", root)) {
      if (box.scrollWidth > box.clientWidth) {
        box.tabIndex = 0;
        box.setAttribute("role", "group");
        box.setAttribute("aria-label", "Table, wider than the page");
      } else {
        for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
      }
    }
  }

  function show(part, html) {
    const fresh = document.createElement("template");
    fresh.innerHTML = html;
    morphChildren(part, fresh.content);
    tellTimes(part);
    markScrollers(part);
    if (window.htmx) window.htmx.process(part);
    part.dispatchEvent(new CustomEvent("miehisto:shown", { bubbles: true }));
  }

  /* --- Dialogs -------------------------------------------------------------------------------- */

  const dialog = $("#dialog");

  function openDialog(address) {
    if (!dialog.open) $("#dialog-body").replaceChildren();  // what was closed shall not come back if this fails
    window.htmx.ajax("GET", address, { target: "#dialog-body", swap: "innerHTML" }).then(() => {
      if (!$("#dialog-body").firstElementChild) return;
      if (!dialog.open) dialog.showModal();
      const first = $("[autofocus]", dialog) || $("input:not([type=hidden]), textarea, button", dialog);
      if (first) first.focus();
    });
  }

  document.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    const link = event.target.closest("a[data-dialog]");
    if (link && window.htmx) {
      event.preventDefault();
      openDialog(link.href);
      return;
    }
    const choose = event.target.closest("[data-choose]");
    if (choose) {  // what a dry run asks for
      const field = choose.closest("form").elements[choose.dataset.choose];
      if (field.type === "checkbox") field.checked = true;
      else field.value = choose.dataset.value;
      const folded = field.closest("details");
      if (folded) folded.open = true;
      field.focus();
      field.dispatchEvent(new Event("change", { bubbles: true }));
      return;
    }
    const close = event.target.closest("[data-close]");
    if (close && dialog.open && dialog.contains(close)) {
      event.preventDefault();
      dialog.close();
    }
    if (event.target === dialog) dialog.close();
  });

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.matches("form[data-dialog]") && window.htmx) {
      event.preventDefault();
      const given = new URLSearchParams(new FormData(form, event.submitter));
      openDialog(form.getAttribute("action") + "?" + given);
    } else if (form.getAttribute("method") === "post" && event.submitter) {
      // A second click would ask for a second job. The page that follows has a button of its own.
      if (form.dataset.sent) event.preventDefault();
      form.dataset.sent = "1";
      setTimeout(() => delete form.dataset.sent, 3000);
    }
  });

  // Nobody sees a hidden page, so it asks for nothing.
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden && event.target.matches("[data-now]")) event.preventDefault();
  });
  // What is asked for again and again must not fold up what somebody unfolded.
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (!event.target.matches("[data-now]") || event.detail.xhr.status !== 200) return;
    event.detail.shouldSwap = false;
    show(event.target, event.detail.xhr.responseText);
  });

  // What is outside of an open dialog is neither seen nor read out.
  function sayAt(place, text) {
    if (!dialog.open || !place || !dialog.contains(place)) return say(text);
    const said = document.createElement("p");
    said.className = "notice error";
    said.setAttribute("role", "alert");
    said.textContent = text;
    place.replaceChildren(said);
  }

  document.addEventListener("htmx:responseError", (event) => {
    sayAt(event.detail.target, "The site answered with an error (" + event.detail.xhr.status + "). Load the page again.");
  });
  document.addEventListener("htmx:sendError", (event) => {
    sayAt(event.detail.target, "The site cannot be reached. Is miehistod running?");
  });

  document.addEventListener("change", (event) => {
    if (!event.target.matches("[data-all]")) return;
    for (const box of all('input[name="id"]', event.target.closest("form"))) box.checked = event.target.checked;
  });

  /* --- Live parts ------------------------------------------------------------------------------ */

  const stream = $("#stream");
  let source = null;
  let since = null;
  let logs = [];

  function say(text) {
    if (!stream) return;
    stream.hidden = !text;
    if (stream.textContent !== text) stream.textContent = text;
  }

  function parts() {
    return all(".part[data-digest]");
  }

  function listen() {
    if (source) source.close();
    source = null;
    if (document.hidden || !(parts().length || logs.length)) return;
    const have = parts().map((part) => part.dataset.digest).join(",");
    const address = "/live/?" + new URLSearchParams({ on: location.pathname + location.search, have });
    source = new EventSource(address);
    source.addEventListener("open", () => {
      since = null;
      say("");
      for (const log of logs) log.found();
      document.documentElement.dataset.stream = "open";
    });
    source.addEventListener("parts", (event) => {
      const found = JSON.parse(event.data);
      for (const name in found) {
        const part = document.getElementById("part-" + name);
        if (!part || part.dataset.digest === found[name].digest) continue;
        part.dataset.digest = found[name].digest;
        show(part, found[name].html);
      }
    });
    for (const log of logs) {
      source.addEventListener("tail", (event) => log.begin(JSON.parse(event.data)));
      source.addEventListener("more", (event) => log.add(JSON.parse(event.data)));
    }
    // The site asks for it: somebody logged out, or what the page shows is gone.
    source.addEventListener("reload", () => location.reload());
    source.addEventListener("error", () => {
      delete document.documentElement.dataset.stream;
      if (document.hidden) return;
      since = since || new Date();
      // Every few minutes the site ends the stream, and the browser is back a second later.
      setTimeout(tellLoss, 2500);
      // The browser tries again by itself unless the site refused: then it takes us to ask.
      if (source && source.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
    });
  }

  function tellLoss() {
    if (!since || document.hidden) return;
    say("The connection is lost; what you see is as it was at " + since.toLocaleTimeString() + ". Trying again…");
    for (const log of logs) log.lose(since);
  }

  // A hidden page gives its connection back: browsers have six for one site, over all tabs.
  document.addEventListener("visibilitychange", listen);
  window.addEventListener("pagehide", () => source && source.close());
  window.addEventListener("pageshow", (event) => event.persisted && listen());
  for (const moved of ["htmx:pushedIntoHistory", "htmx:historyRestore"]) document.addEventListener(moved, () => setTimeout(listen));
  document.addEventListener("htmx:afterSwap", (event) => {
    tellTimes(event.target);
    if (event.target.matches(".part")) event.target.dataset.digest = "";
  });

  /* --- A service's log ------------------------------------------------------------------------- */

  const MOST_LINES = 2000;

  /* A stream begins with the last lines; those that were read before stay above, with a mark if some are missing. */
  function joined(before, last) {
    const whole = before.slice(0, -1);  // its last line may not have been complete
    if (!whole.length) return last;
    for (let at = Math.max(0, whole.length - last.length + 1); at < whole.length; at++) {
      if (whole.slice(at).every((line, number) => line === last[number])) return whole.slice(0, at).concat(last);
    }
    return last.length > whole.length ? last : whole.concat("… lines that came meanwhile are left out here …", last);
  }

  function followedLog(section) {
    const pre = $("pre", section);
    const search = $("[data-log-search]", section);
    const button = $("[data-log-pause]", section);
    const state = $("[data-log-state]", section);
    const said = $("[data-log-said]", section);
    let lines = pre.textContent.split("\n");
    let held = null;  // the lines that are looked at while it is paused
    let missed = 0;
    let lost = null;
    let begun = false;

    function paint() {
      const wanted = search.value.toLowerCase();
      const atEnd = pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 30;
      const known = held || lines;
      const shown = wanted ? known.filter((line) => line.toLowerCase().includes(wanted)) : known;
      if (wanted) {
        pre.replaceChildren();
        for (const line of shown) {
          const at = line.toLowerCase().indexOf(wanted);
          const mark = document.createElement("mark");
          mark.textContent = line.slice(at, at + wanted.length);
          pre.append(line.slice(0, at), mark, line.slice(at + wanted.length) + "\n");
        }
      } else {
        pre.textContent = shown.join("\n");
      }
      const empty = $("[data-log-empty]", section);
      if (empty) empty.hidden = lines.join("") !== "";
      tell(wanted ? shown.length : -1);
      if (atEnd && !held) pre.scrollTop = pre.scrollHeight;
    }

    let found = -1;
    function tell(count) {
      if (count !== undefined) found = count;
      state.textContent = [
        lost ? "The connection is lost: these are the lines until " + lost.toLocaleTimeString() + ". Trying again…" : "",
        found >= 0 ? found + " lines with this text" : "",
        held && missed ? missed + " new lines are held back" : "",
      ].filter(Boolean).join(" · ");
    }

    button.addEventListener("click", () => {
      held = held ? null : lines.slice();
      missed = 0;
      button.textContent = held ? "Go on" : "Pause";
      paint();
      said.textContent = held ? "The log is held." : "The log goes on.";
    });
    search.addEventListener("input", () => {
      paint();
      said.textContent = state.textContent;
    });
    return {
      begin(text) {
        lines = joined(lines, text.split("\n")).slice(-MOST_LINES);
        if (held) return;
        paint();
        if (!begun) pre.scrollTop = pre.scrollHeight;
        begun = true;
      },
      add(text) {
        const fresh = text.split("\n");
        lines[lines.length - 1] += fresh.shift();
        lines = lines.concat(fresh).slice(-MOST_LINES);
        missed += fresh.length;
        if (held) tell(); else paint();
      },
      lose(at) {
        if (!lost) said.textContent = "The connection is lost.";
        lost = at;
        tell();
      },
      found() {
        if (lost) said.textContent = "The connection is back.";
        lost = null;
        tell();
      },
    };
  }

  logs = all("[data-log]").map(followedLog);

  tellTimes();
  markScrollers();
  window.addEventListener("resize", () => markScrollers());
  document.addEventListener("toggle", () => markScrollers(), true);
  tellSeconds();
  setInterval(() => tellTimes(), 5000);
  setInterval(tellSeconds, 1000);
  for (const box of all(".life-scroll")) {  // what is new is at its end, which may be before the axis' own
    const last = all(".stretch", box).pop();
    if (last) box.scrollLeft += last.getBoundingClientRect().right - box.getBoundingClientRect().right + 24;
  }
  listen();
})();
