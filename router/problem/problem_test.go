package problem

import "testing"

func TestStringRendersAProblemOnOneLine(t *testing.T) {
	for want, p := range map[string]Problem{
		"the disk is full: pods do not start. Make room": {What: "the disk is full", Effect: "pods do not start", Fix: "make room"},
		"the disk is full: pods do not start":            {What: "the disk is full", Effect: "pods do not start"},
		"the disk is full: make room":                    {What: "the disk is full", Fix: "make room"},
		"the disk is full":                               {What: "the disk is full"},
		"a: b. `c`":                                      {What: "a", Effect: "b", Fix: "`c`"},
	} {
		if got := p.String(); got != want {
			t.Errorf("String of %#v is %q; want %q", p, got, want)
		}
	}
}

func TestProblemKeyDependsOnAboutNotOnTheText(t *testing.T) {
	then, now := Problem{Reason: "Disk", About: "/var", What: "3 KiB are left"}, Problem{Reason: "Disk", About: "/var", What: "2 KiB are left"}
	if then.Key() != now.Key() {
		t.Errorf("the keys %v and %v differ although only the text changed; want the same", then.Key(), now.Key())
	}
	if other := (Problem{Reason: "Disk", What: "2 KiB are left"}); other.Key() == now.Key() {
		t.Error("a problem without About has the same key as one with About; want its text in the key")
	}
}
