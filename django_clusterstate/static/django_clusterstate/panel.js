/* Keeps the panel up to date. Every text that it shows is in the page, which is readable without it. */
"use strict";

{
    const live = document.getElementById("clusterstate-live");
    const pause = document.getElementById("clusterstate-pause");
    const trouble = document.getElementById("clusterstate-trouble");
    const announcement = document.getElementById("clusterstate-announcement");

    const INTERVAL = 1000 * live.dataset.interval;
    const LONGEST_PAUSE = 30_000; // between attempts, once they fail
    const TIMEOUT = 10_000;

    class Refused extends Error {}

    // -- the page becomes what the site sent

    /** What tells an element from its siblings, so that a row stays itself when another comes before it. */
    const key = (node) => node.id || node.dataset?.key || "";

    const alike = (old, fresh) => old.nodeName === fresh.nodeName && key(old) === key(fresh);

    /** Changes only what differs: the rest keeps its focus, its scroll position, its selection. */
    function patch(old, fresh) {
        if (old.isEqualNode(fresh)) return;
        if (!(old instanceof Element)) {
            old.nodeValue = fresh.nodeValue;
            return;
        }
        const ofTheReader = (name) => name === "open" && old.localName === "details";
        for (const { name } of [...old.attributes]) {
            if (!fresh.hasAttribute(name) && !ofTheReader(name)) old.removeAttribute(name);
        }
        for (const { name, value } of fresh.attributes) {
            if (old.getAttribute(name) !== value && !ofTheReader(name)) old.setAttribute(name, value);
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
            if (at && alike(at, wanted)) {
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

    // -- what went wrong is told, once

    let upToDate = new Date();
    let told = "";

    function tell(template) {
        if (template === told) return;
        told = template;
        trouble.replaceChildren();
        if (!template) return;
        const note = document.getElementById(template).content.cloneNode(true);
        const time = note.querySelector("time");
        time.dateTime = upToDate.toISOString();
        time.textContent = upToDate.toLocaleTimeString(document.documentElement.lang || undefined);
        trouble.append(note);
    }

    // -- one request at a time, none while nobody looks

    let paused = false;
    let asking = false;
    let failures = 0;
    let timer;

    /** Raises `Refused` when the site wants another user, and other errors when it doesn't answer well. */
    async function ask() {
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
        if (asking) return;
        asking = true;
        try {
            const fresh = await ask();
            failures = 0;
            tell("");
            if (!paused) {
                upToDate = new Date();
                show(fresh);
            }
        } catch (error) {
            failures += 1;
            tell(error instanceof Refused ? "clusterstate-refused" : "clusterstate-unanswered");
        } finally {
            asking = false;
        }
        schedule(Math.min(INTERVAL * 2 ** failures, LONGEST_PAUSE));
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
