/* Refreshes the panel. All texts that it shows are in the page, which works without this script. */
"use strict";

{
    const live = document.getElementById("clusterstate-live");
    const pause = document.getElementById("clusterstate-pause");
    const trouble = document.getElementById("clusterstate-trouble");
    const announcement = document.getElementById("clusterstate-announcement");

    const INTERVAL = 1000 * live.dataset.interval;
    const MAX_INTERVAL = 30_000; // between attempts after failures
    const TIMEOUT = 10_000;

    class Refused extends Error {}

    // -- updating the page

    /** Identifies an element among its siblings, so that a row stays the same when another is inserted before it. */
    const key = (node) => node.id || node.dataset?.key || "";

    const matches = (old, fresh) => old.nodeName === fresh.nodeName && key(old) === key(fresh);

    /** Changes only the differences: the rest keeps its focus, scroll position and selection. */
    function patch(old, fresh) {
        if (old.isEqualNode(fresh)) return;
        if (!(old instanceof Element)) {
            old.nodeValue = fresh.nodeValue;
            return;
        }
        const isSetByUser = (name) => name === "open" && old.localName === "details";
        for (const { name } of [...old.attributes]) {
            if (!fresh.hasAttribute(name) && !isSetByUser(name)) old.removeAttribute(name);
        }
        for (const { name, value } of fresh.attributes) {
            if (old.getAttribute(name) !== value && !isSetByUser(name)) old.setAttribute(name, value);
        }
        patchChildren(old, fresh);
    }

    function patchChildren(old, fresh) {
        const kept = new Map([...old.children].filter(key).map((child) => [key(child), child]));
        let at = old.firstChild;
        for (const wanted of [...fresh.childNodes]) {
            const same = kept.get(key(wanted));
            kept.delete(key(wanted));
            while (same?.parentNode === old && at !== same) at = remove(at);
            if (at && matches(at, wanted)) {
                patch(at, wanted);
                at = at.nextSibling;
            } else {
                old.insertBefore(wanted, at);
            }
        }
        while (at) at = remove(at);
    }

    function remove(node) {
        const next = node.nextSibling;
        node.remove();
        return next;
    }

    const announcements = (element) =>
        [...element.querySelectorAll("[data-announce]")].map((section) => section.dataset.announce).join(" ");

    function show(fresh) {
        const before = announcements(live);
        patchChildren(live, fresh);
        const after = announcements(live);
        if (after !== before) announcement.textContent = after;
    }

    // -- showing failures

    let upToDate = new Date();
    let shown = "";

    /** Shows the note of a template, or none, unless it is shown already. */
    function showNote(template) {
        if (template === shown) return;
        shown = template;
        trouble.replaceChildren();
        if (!template) return;
        const note = document.getElementById(template).content.cloneNode(true);
        const time = note.querySelector("time");
        time.dateTime = upToDate.toISOString();
        time.textContent = upToDate.toLocaleTimeString(document.documentElement.lang || undefined);
        trouble.append(note);
    }

    // -- one request at a time, none while the page is hidden

    let paused = false;
    let loading = false;
    let failures = 0;
    let timer;

    /** Loads the page. Throws `Refused` if the user isn't allowed to see it, and another error if the request fails. */
    async function load() {
        const url = new URL(location.href);
        url.searchParams.set("live", "");
        const response = await fetch(url, { redirect: "manual", signal: AbortSignal.timeout(TIMEOUT) });
        if (response.type === "opaqueredirect" || response.status === 403) throw new Refused();
        if (!response.ok) throw new Error(response.statusText);
        const { body } = new DOMParser().parseFromString(await response.text(), "text/html");
        if (!body.querySelector("[data-live]")) throw new Error("not a page of the panel");
        return body;
    }

    async function refresh() {
        if (loading) return;
        loading = true;
        try {
            const fresh = await load();
            failures = 0;
            showNote("");
            if (!paused) {
                upToDate = new Date();
                show(fresh);
            }
        } catch (error) {
            failures += 1;
            showNote(error instanceof Refused ? "clusterstate-refused" : "clusterstate-unanswered");
        } finally {
            loading = false;
        }
        schedule(Math.min(INTERVAL * 2 ** failures, MAX_INTERVAL));
    }

    function schedule(milliseconds) {
        clearTimeout(timer);
        if (!paused && !document.hidden) timer = setTimeout(refresh, milliseconds);
    }

    const labels = [pause.textContent, pause.dataset.resume];

    pause.addEventListener("click", () => {
        paused = !paused;
        pause.textContent = labels[Number(paused)];
        schedule(0);
    });
    document.addEventListener("visibilitychange", () => schedule(0));

    pause.hidden = false;
    schedule(INTERVAL);
}
