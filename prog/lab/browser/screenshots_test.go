package browser

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/chromedp/chromedp"
)

var update = flag.Bool("update", false, "write the screenshots of the documentation")

// maxShot limits the size of a screenshot, since every clone has it.
const maxShot = 200 << 10

// shoot takes a screenshot. With -update it is written into the documentation.
func (p *page) shoot(name string) {
	p.t.Helper()
	png, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		p.t.Fatal(err)
	}
	if len(png) > maxShot {
		p.t.Errorf("the screenshot %s has %d kB, want at most %d", name, len(png)>>10, maxShot>>10)
	}
	if *update {
		if err := os.WriteFile(filepath.Join("..", "..", "..", "site", "docs", "img", "ui-"+name+".png"), png, 0o644); err != nil {
			p.t.Fatal(err)
		}
	}
}

// The screenshots of README and documentation come from this test: run it with -update.
func TestScreenshots(t *testing.T) {
	p := open(t, serve(t, three()))
	p.size(1280, 760)
	p.says(".linklabel", "relayed through h2")
	p.shoot("mesh")
	p.colours("dark")
	p.wait("button for light colours", `document.querySelector('[aria-label="Light colours"]')`)
	p.shoot("mesh-dark")
	p.colours("light")
	p.show("access")
	p.says(".mhead", "shop")
	p.run(chromedp.SendKeys(chromedp.CSS("#ask-from"), "shop/web-0"), chromedp.SendKeys(chromedp.CSS("#ask-to"), "shop/db-0"), chromedp.SendKeys(chromedp.CSS(`[name="port"]`), "5432\r"))
	p.says(".answer", "do not match the rule's podSelector")
	p.shoot("access")
	p.show("flows")
	p.click(".row.denied")
	p.says(".panel", "Seen by")
	p.shoot("flows")
}
