package browser

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// All of the page works with the keyboard alone.
func TestKeyboardReachesEverything(t *testing.T) {
	p := open(t, serve(t, three()))
	p.says(".host .name", "h1")
	eval[bool](p, `(document.activeElement.blur(), true)`)
	for i, want := range []string{
		"a Skip to the content", "a Weft: the mesh", "a Mesh", "a Addresses", "a Endpoints", "a Access", "a Flows", "a Health", "button Dark colours",
		"input Find a host", "button Graph", "button Table", "button h1, the host of this page: ready", "button Larger", "button Smaller", "button Whole mesh", "button h1",
	} {
		p.press(tab)
		if have := p.focused(); !strings.HasPrefix(have, want) {
			t.Errorf("after %d times Tab, the focus is on %q, want %q", i+1, have, want)
		}
	}
	eval[bool](p, `(document.querySelector('.host[tabindex="0"]').focus(), true)`)
	p.press(right, enter)
	p.says(".panel h2", "h2")
	p.wait("focus stays on the host", `document.activeElement.getAttribute('aria-pressed') === 'true'`)
	p.press(escape)
	p.says(".panel h2", "Hosts")
	p.show("flows")
	p.says(".summary", "12 flows")
	eval[bool](p, `(document.querySelector('.table-flows [data-row]').focus(), true)`)
	p.press(down, enter)
	p.wait("panel of the second flow", `document.querySelector('.table-flows [data-row]:nth-child(2)').getAttribute('aria-selected') === 'true' && document.querySelector('.panel')`)
	p.show("access")
	p.says(".mhead", "shop")
	eval[bool](p, `(document.querySelector('.mcell[tabindex="0"]').focus(), true)`)
	p.press(right, down)
	p.wait("the cell beside and below", `document.activeElement.getAttribute('aria-label')?.startsWith('kube-system to kube-system')`)
	p.press(enter)
	p.says("#matrix-title", "kube-system → kube-system")
}

// structure lists what a screen reader needs and the page lacks.
const structure = `(() => {
	const faults = [];
	const name = (e) => (e.getAttribute('aria-label') || (e.getAttribute('aria-labelledby') ?? '').split(' ').map((id) => document.getElementById(id)?.textContent ?? '').join(' ').trim() || [...(e.labels ?? [])].map((l) => l.textContent).join(' ') || e.textContent || e.title).trim();
	for (const e of document.querySelectorAll('a, button, input, select, [role="button"], [role="table"], [role="grid"], [role="img"], [role="listbox"], nav, aside, svg[role]')) if (!name(e)) faults.push('no name: ' + e.outerHTML.slice(0, 120));
	for (const role of ['main', 'header', 'nav']) if (document.querySelectorAll(role === 'header' ? 'body > header' : role).length === 0) faults.push('no landmark ' + role);
	if (document.querySelectorAll('main h1').length !== 1) faults.push('not one h1 in main, but ' + document.querySelectorAll('main h1').length);
	let level = 1;
	for (const e of document.querySelectorAll('main h1, main h2, main h3, main h4')) {
		if (e.tagName[1] - level > 1) faults.push('a heading is left out before: ' + e.textContent.slice(0, 60));
		level = Number(e.tagName[1]);
	}
	const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
	for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) faults.push('two elements have the id ' + id);
	const parents = { row: '[role="table"], [role="grid"], [role="rowgroup"]', cell: '[role="row"]', gridcell: '[role="row"]', columnheader: '[role="row"]', rowheader: '[role="row"]', option: '[role="listbox"]' };
	for (const [role, parent] of Object.entries(parents)) for (const e of document.querySelectorAll('[role="' + role + '"]')) if (!e.parentElement.closest(parent)) faults.push('a ' + role + ' outside of ' + parent);
	for (const e of document.querySelectorAll('svg:not([role])')) if (e.getAttribute('aria-hidden') !== 'true') faults.push('a picture without a name: ' + e.outerHTML.slice(0, 120));
	if (document.documentElement.lang !== 'en') faults.push('no language');
	if (!document.querySelector('nav [aria-current="page"]')) faults.push('no current view');
	return faults;
})()`

func TestScreenReadersFindNamesAndStructure(t *testing.T) {
	p := open(t, serve(t, three()))
	for _, view := range []string{"mesh", "ring", "endpoints", "access", "flows", "health"} {
		p.wait("view", `document.querySelector('main h1')`)
		p.show(view)
		p.wait("content", `document.querySelectorAll('main [role="row"], main .host, main .tile').length >= 3`)
		for _, open := range []string{".host", ".row.clickable"} {
			if eval[bool](p, fmt.Sprintf(`Boolean(document.querySelector(%q))`, open)) {
				eval[bool](p, fmt.Sprintf(`(document.querySelector(%q).dispatchEvent(new MouseEvent('click', { bubbles: true })), true)`, open))
				p.wait("what is chosen", `document.querySelector('main aside, main dl')`)
			}
		}
		for _, fault := range eval[[]string](p, structure) {
			t.Errorf("view %s: %s", view, fault)
		}
	}
}

// contrasts returns the ratio of each pair of text and ground that the page uses (WCAG 2, 1.4.3), by "text on ground".
const contrasts = `(() => {
	const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
	const probe = document.body.appendChild(document.createElement('i'));
	const light = (name) => {
		probe.style.color = 'var(--' + name + ')';
		canvas.fillStyle = getComputedStyle(probe).color;
		canvas.fillRect(0, 0, 1, 1);
		const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
		return 0.2126 * r + 0.7152 * g + 0.0722 * b;
	};
	const out = {};
	const pair = (text, ground) => {
		const [a, b] = [light(text), light(ground)].sort((x, y) => y - x);
		out[text + ' on ' + ground] = (a + 0.05) / (b + 0.05);
	};
	for (const ground of ['ground', 'surface', 'sunken']) for (const text of ['text', 'muted', 'accent', 'ok', 'warn', 'bad', 'idle']) pair(text, ground);
	for (const kind of ['ok', 'warn', 'bad', 'idle', 'accent']) { pair(kind, kind + '-soft'); pair('text', kind + '-soft'); }
	pair('muted', 'idle-soft');
	pair('on-accent', 'accent');
	pair('surface', 'bad');
	pair('ground', 'text');
	probe.remove();
	return out;
})()`

func TestColoursHaveContrast(t *testing.T) {
	p := open(t, serve(t, three()))
	p.says(".host .name", "h1")
	for _, scheme := range []string{"light", "dark"} {
		p.colours(scheme)
		worst := math.Inf(1)
		for pair, ratio := range eval[map[string]float64](p, contrasts) {
			if ratio < 4.5 {
				t.Errorf("%s: %s has the contrast %.2f, want at least 4.5 (WCAG AA)", scheme, pair, ratio)
			}
			worst = min(worst, ratio)
		}
		t.Logf("%s: the lowest contrast is %.2f", scheme, worst)
	}
}

func TestColoursFollowTheSystemUnlessChosen(t *testing.T) {
	p := open(t, serve(t, three()))
	p.says(".host .name", "h1")
	ground := func() string { return eval[string](p, `getComputedStyle(document.documentElement).backgroundColor`) }
	light := ground()
	p.colours("dark")
	p.wait("dark ground", `getComputedStyle(document.documentElement).backgroundColor !== '`+light+`'`)
	p.click(`[aria-label="Light colours"]`)
	p.wait("light ground", `getComputedStyle(document.documentElement).backgroundColor === '`+light+`'`)
	p.reload("0")
	p.wait("the choice after a reload", `document.querySelector('[aria-label="Dark colours"]')`)
}

// Without motion, nothing of the page is animated.
func TestReducedMotionIsRespected(t *testing.T) {
	p := open(t, serve(t, three()))
	p.says(".host .name", "h1")
	if n := eval[int](p, `document.getAnimations().length`); n != 0 {
		t.Errorf("%d animations run, want none for a user that prefers reduced motion", n)
	}
}

func TestNarrowScreensShowEverything(t *testing.T) {
	p := open(t, serve(t, three()))
	p.size(420, 800)
	for _, view := range []string{"mesh", "ring", "endpoints", "access", "flows", "health"} {
		p.wait("view", `document.querySelector('main h1')`)
		p.show(view)
		if wide := eval[int](p, `document.documentElement.scrollWidth`); wide > 420 {
			t.Errorf("view %s is %d pixels wide on a screen of 420, want no scrolling to the side", view, wide)
		}
	}
}
