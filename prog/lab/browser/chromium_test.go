package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"weft/prog/lab/labtest"
)

// patience is how long a test waits for what must appear.
const patience = 20 * time.Second

// page is a tab of Chromium with the page of weft ui.
type page struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	expected string   // a part of the faults that the test provokes
	faults   []string // errors and warnings in the console; violations of the Content-Security-Policy are among them
}

// open starts Chromium with the page at an address. At the end, the test fails if the console has an error.
func open(t *testing.T, url string) *page {
	t.Helper()
	labtest.Need(t, "chromium", "chromium")
	flags := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.ExecPath("chromium"), chromedp.WindowSize(1360, 860),
		chromedp.Flag("force-device-scale-factor", "1"), chromedp.Flag("disable-gpu", true))
	if os.Geteuid() == 0 {
		flags = append(flags, chromedp.NoSandbox) // Chromium's sandbox does not work as root
	}
	alloc, end := chromedp.NewExecAllocator(t.Context(), flags...)
	t.Cleanup(end)
	ctx, stop := chromedp.NewContext(alloc)
	t.Cleanup(stop)
	p := &page{t: t, ctx: ctx}
	p.run() // the browser lives as long as this first call's context
	messages := chromedp.Console(ctx)
	go func() { // ends with the browser
		for m, err := range messages {
			if err != nil {
				return
			}
			if m.IsException() || m.Type == "error" || m.Type == "warning" {
				p.mu.Lock()
				if text := m.String() + " " + m.URL; p.expected == "" || !strings.Contains(text, p.expected) {
					p.faults = append(p.faults, text)
				}
				p.mu.Unlock()
			}
		}
	}()
	_, err := chromedp.Call(ctx, emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: "UTC"})
	if err != nil {
		t.Fatal(err)
	}
	p.colours("light")
	p.size(1360, 860)
	p.run(chromedp.Navigate(url))
	t.Cleanup(p.clean)
	return p
}

// clean fails the test if the console had errors.
func (p *page) clean() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.faults {
		p.t.Errorf("the browser's console has %q, want no errors", f)
	}
}

// colours sets the colour scheme that the user prefers. Nothing moves, so that screenshots are alike.
func (p *page) colours(scheme string) {
	p.t.Helper()
	_, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
	}})
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *page) size(width, height int64) {
	p.t.Helper()
	p.run(chromedp.EmulateViewport(width, height))
}

// expect lets the console have errors with a part of their text: those that the test provokes.
func (p *page) expect(part string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expected = part
}

// press sends keys to the element that has the focus.

func (p *page) press(keys ...string) {
	p.t.Helper()
	for _, k := range keys {
		p.run(chromedp.KeyEvent(k))
	}
}

// focused describes the element that has the focus: its role or tag, and its name.
func (p *page) focused() string {
	p.t.Helper()
	return eval[string](p, `(() => { const e = document.activeElement; return (e.getAttribute('role') ?? e.tagName.toLowerCase()) + ' ' + (e.getAttribute('aria-label') ?? e.labels?.[0]?.innerText ?? e.innerText).trim(); })()`)
}

// typeIn replaces the text of a field.
func (p *page) typeIn(selector, text string) {
	p.t.Helper()
	p.run(chromedp.Focus(chromedp.CSS(selector)))
	eval[bool](p, fmt.Sprintf(`(document.querySelector(%s).select(), true)`, quote(selector)))
	if text == "" {
		text = "\b"
	}
	p.press(strings.Split(text, "")...)
}

func (p *page) run(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx := p.ctx
	if len(actions) > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(p.ctx, patience)
		defer cancel()
	}
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.t.Fatalf("%v, want success", err)
	}
}

// eval evaluates JavaScript. A promise is awaited.
func eval[T any](p *page, js string) T {
	p.t.Helper()
	out, err := tryEval[T](p, js)
	if err != nil {
		p.t.Fatalf("%s: %v, want a value", js, err)
	}
	return out
}

func tryEval[T any](p *page, js string) (T, error) {
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](js, chromedp.EvalAwaitPromise))
}

// reload loads the page again, after some JavaScript.
func (p *page) reload(js string) {
	p.t.Helper()
	eval[bool](p, `(window.before = true, `+js+`, setTimeout(() => location.reload()), true)`)
	p.wait("page that was loaded again", `!window.before`)
}

// text returns the visible text of the first element.
func (p *page) text(selector string) string {
	p.t.Helper()
	return eval[string](p, fmt.Sprintf(`document.querySelector(%s)?.innerText ?? ''`, quote(selector)))
}

func quote(s string) string {
	data, _ := json.Marshal(s) // a string can always be marshalled
	return string(data)
}

// wait waits until an expression is true.
func (p *page) wait(what, js string) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		yes, err := tryEval[bool](p, "Boolean("+js+")")
		switch {
		case yes:
			return
		case err != nil && !strings.Contains(err.Error(), "navigated"): // while the page is loaded again, nothing can be evaluated
			p.t.Fatalf("%s: %v, want a value", js, err)
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("there is no %s after %v; the page says: %.3000s", what, patience, p.text("body"))
		}
	}
}

// says waits until an element's text has a part.
func (p *page) says(selector, part string) {
	p.t.Helper()
	p.wait(fmt.Sprintf("%q in %s", part, selector), fmt.Sprintf(`[...document.querySelectorAll(%s)].some((e) => e.textContent.includes(%s))`, quote(selector), quote(part)))
}

// show opens a view.
func (p *page) show(view string) {
	p.t.Helper()
	p.click(fmt.Sprintf(`nav a[href="#/%s"]`, view))
	p.wait("view "+view, fmt.Sprintf(`document.querySelector('main').className === 'view-%s'`, view))
}

// click presses an element as soon as it is there.
func (p *page) click(selector string) {
	p.t.Helper()
	p.wait(selector, fmt.Sprintf(`document.querySelector(%s)`, quote(selector)))
	p.run(chromedp.Click(chromedp.CSS(selector)))
}

// Keys, as chromedp names them.
const (
	tab    = "\t"
	enter  = kb.Enter
	down   = kb.ArrowDown
	right  = kb.ArrowRight
	escape = kb.Escape
)
