package browser

import (
	"fmt"
	"testing"

	"weft/prog/api"
)

// watching records tasks that keep the page from reacting, and the time from an answer to its picture.
const watching = `(() => {
	window.long = [];
	new PerformanceObserver((list) => list.getEntries().forEach((e) => window.long.push(Math.round(e.duration)))).observe({ type: 'longtask', buffered: true });
	performance.setResourceTimingBufferSize(5000);
	return true;
})()`

// frames runs a step in each of 60 frames, and returns how long the frames took, in ms, the longest last.
const frames = `((step) => new Promise((done) => {
	const took = [];
	let last = performance.now(), n = 0;
	const frame = (now) => {
		took.push(now - last);
		last = now;
		if (n === 60) return done(took.slice(1).sort((a, b) => a - b));
		step(n++);
		requestAnimationFrame(frame);
	};
	requestAnimationFrame(frame);
}))`

// plain measures frames of a picture with as many shapes as the mesh has, drawn by the browser alone: nothing but a
// transformation changes. It says how fast this machine is now.
const plain = `(async () => {
	const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg'), group = document.createElementNS(svg.namespaceURI, 'g');
	const shape = (kind, of) => {
		const e = document.createElementNS(svg.namespaceURI, kind);
		Object.entries(of).forEach(([k, v]) => e.setAttribute(k, v));
		group.append(e);
	};
	const count = (kind) => document.querySelectorAll('.canvas svg ' + kind).length;
	for (let i = 0, n = count('path'); i < n; i++) shape('line', { x1: i * 37 % 900, y1: i * 91 % 700, x2: i * 53 % 900, y2: i * 29 % 700, stroke: 'gray' });
	for (let i = 0, n = count('circle'); i < n; i++) shape('circle', { cx: i * 37 % 900, cy: i * 91 % 700, r: 6, fill: 'navy' });
	svg.style.cssText = 'position:fixed;inset:0;width:100%;height:100%;z-index:1000;background:white';
	svg.append(group);
	document.body.append(svg);
	const took = await ` + frames + `((n) => group.setAttribute('transform', 'translate(' + n + ' ' + -n + ')'));
	svg.remove();
	return took[Math.floor(took.length / 2)];
})()`

// slowest is the longest task that the page may have: beyond that, people feel that it hangs. The bound is generous,
// since the machine may be busy with other tests.
const slowest = 1000.0

func TestPageIsFluentWithManyHosts(t *testing.T) {
	a := many(500)
	p := open(t, serve(t, a))
	eval[bool](p, watching)
	p.says(".glance", "500 hosts · 10,000 endpoints")
	p.wait("all hosts", `document.querySelectorAll('.host').length === 500`)
	report := func(what string) {
		t.Helper()
		long := eval[[]float64](p, `window.long.splice(0)`)
		worst := 0.0
		for _, d := range long {
			worst = max(worst, d)
		}
		t.Logf("%s: %d tasks over 50 ms, the longest took %v ms", what, len(long), worst)
		if worst > slowest {
			t.Errorf("%s: a task took %v ms, want at most %v", what, worst, slowest)
		}
	}
	smooth := func(what, step string) {
		t.Helper()
		before := eval[float64](p, plain)
		took := eval[[]float64](p, frames+"("+step+")")
		median, worst, alone := took[len(took)/2], took[len(took)-1], max(before, eval[float64](p, plain))
		t.Logf("%s: a frame takes %.0f ms, the longest took %.0f ms; the browser alone takes %.0f ms", what, median, worst, alone)
		if median > max(100, 5*alone) || worst > slowest {
			t.Errorf("%s: a frame takes %.0f ms, and %.0f ms at worst; want at most %.0f and %v", what, median, worst, max(100, 5*alone), slowest)
		}
		report(what)
	}
	report("loading")
	pointer := func(kind, x, y string) string {
		return fmt.Sprintf(`document.elementFromPoint(300, 640)?.dispatchEvent(new PointerEvent('%s', { bubbles: true, buttons: 1, clientX: %s, clientY: %s }))`, kind, x, y)
	}
	smooth("dragging the mesh", `(n) => { `+pointer("pointerdown", "300", "640")+`; `+pointer("pointermove", "300 + n", "640 - n")+` }`)
	smooth("zooming the mesh", `(n) => document.querySelector('.canvas svg').dispatchEvent(new WheelEvent('wheel', { bubbles: true, cancelable: true, clientX: 400, clientY: 400, deltaY: n % 2 ? 60 : -60 }))`)
	eval[bool](p, `(document.querySelectorAll('.host')[250].dispatchEvent(new MouseEvent('click', { bubbles: true })), true)`)
	p.wait("all tunnels of the selected host", `document.querySelectorAll('.linkgroup.near').length >= 499`)
	report("selecting a host")
	delay := pictureDelay(p, a)
	t.Logf("a cut link is in the picture %.0f ms after the agent's answer", delay)
	if delay > slowest {
		t.Errorf("the picture follows the agent's answer after %.0f ms, want at most %v", delay, slowest)
	}
	report("two polls with a selected host")
	p.show("ring")
	p.says(".row", "node-001")
	report("the ring")
	p.show("endpoints")
	p.says(".row", "app-")
	smooth("scrolling 10,000 endpoints", `(n) => { document.querySelector('[data-scroll="endpoints"]').scrollTop = n * 3000; }`)
	p.typeIn(`[data-input="endpointSearch"]`, "app7 t1 node-3")
	p.says(".summary", "100 endpoints")
	report("searching")
	p.show("access")
	p.says(".mhead", "team-49")
	report("a matrix of 50 namespaces")
	p.show("flows")
	p.says(".summary", "3,000 flows")
	smooth("scrolling flows", `(n) => { document.querySelector('[data-scroll="flows"]').scrollTop = n * 1500; }`)
	p.show("health")
	p.says(".hostcard", "its clock is 3 s late")
	report("health")
	if rows := eval[int](p, `document.querySelectorAll('*').length`); rows > 10_000 {
		t.Errorf("the page has %d elements, want far fewer than the network has endpoints", rows)
	}
}

// pictureDelay cuts a link, and returns the time from the agent's answer to the picture, in ms.
func pictureDelay(p *page, a *fakeAgent) float64 {
	eval[bool](p, `(() => {
		const before = document.querySelectorAll('[data-state="one-way"]').length;
		new MutationObserver((_, me) => {
			if (document.querySelectorAll('[data-state="one-way"]').length === before) return;
			me.disconnect();
			const now = performance.now(), ends = performance.getEntriesByType('resource').filter((e) => e.name.endsWith('/api/network')).map((e) => e.responseEnd);
			window.delay = now - Math.max(...ends);
		}).observe(document.querySelector('.links'), { subtree: true, childList: true, attributes: true });
		return true;
	})()`)
	a.do(func() {
		l := &a.network.Hosts[250].Links[0]
		l.State, l.Info = api.ConnOneWay, "packets arrive only there"
	})
	p.wait("picture of the cut link", `window.delay !== undefined`)
	return eval[float64](p, `window.delay`)
}
