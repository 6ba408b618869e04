package problem

import "testing"

func TestAProblemIsOneLine(t *testing.T) {
	for want, p := range map[string]Problem{
		"the disk is full: pods do not start. Make room": {What: "the disk is full", Effect: "pods do not start", Fix: "make room"},
		"the disk is full: pods do not start":            {What: "the disk is full", Effect: "pods do not start"},
		"the disk is full: make room":                    {What: "the disk is full", Fix: "make room"},
		"the disk is full":                               {What: "the disk is full"},
		"a: b. `c`":                                      {What: "a", Effect: "b", Fix: "`c`"},
	} {
		if got := p.String(); got != want {
			t.Errorf("%#v is %q, want %q", p, got, want)
		}
	}
}

func TestTheKeyOutlastsTheText(t *testing.T) {
	then, now := Problem{Reason: "Disk", About: "/var", What: "3 KiB are left"}, Problem{Reason: "Disk", About: "/var", What: "2 KiB are left"}
	if then.Key() != now.Key() {
		t.Errorf("%v and %v are one problem", then.Key(), now.Key())
	}
	if other := (Problem{Reason: "Disk", What: "2 KiB are left"}); other.Key() == now.Key() {
		t.Error("a problem without About is known by its text")
	}
}
