package browser

import (
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

func TestShotMany(t *testing.T) {
	p := open(t, serve(t, many(500)))
	p.size(1280, 760)
	p.says(".glance", "10,000 endpoints")
	p.run(chromedp.Sleep(3 * time.Second))
	p.shoot("many")
	p.show("ring")
	p.run(chromedp.Sleep(time.Second))
	p.shoot("many-ring")
	p.show("access")
	p.run(chromedp.Sleep(time.Second))
	p.shoot("many-access")
}
