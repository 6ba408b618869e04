package mesh

import (
	"bytes"
	"testing"
)

// What a stranger sends as an application, or a member as a verdict, is bounded and never causes a panic.
func FuzzApplication(f *testing.F) {
	var good bytes.Buffer
	if err := writeShort(&good, application{Proof: make([]byte, 96), Nickname: "h1", Clock: 1}); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add([]byte{0xff, 0xff, 0xa1})
	f.Fuzz(func(t *testing.T, data []byte) {
		var a application
		if readShort(bytes.NewReader(data), &a) == nil && len(a.Proof)+len(a.Nickname) > maxAdmit {
			t.Errorf("an application of %d bytes was read, want at most %d", len(data), maxAdmit)
		}
		var v verdict
		_ = readShort(bytes.NewReader(data), &v)
	})
}
