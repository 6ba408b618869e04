package mesh

import (
	"bytes"
	"testing"
	"time"
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

// A greeting of memberlist's metadata that is not the signed one is never accepted as that of this version.
func FuzzHello(f *testing.F) {
	name := nodeName(idOf(2), time.Unix(1, 0))
	good := greeting(identity(2), name, address(2))
	f.Add(good)
	f.Add(encode(helloWire{Version: Version + 1}))
	f.Fuzz(func(t *testing.T, meta []byte) {
		h, err := still(t, 1).openHello(meta, name, address(2))
		if err == nil && h.Version == Version && !bytes.Equal(meta, good) {
			var w, signed helloWire
			if decoding.Unmarshal(meta, &w) != nil || decoding.Unmarshal(good, &signed) != nil || !bytes.Equal(w.Content, signed.Content) {
				t.Errorf("a greeting that was not signed is accepted: %x", meta)
			}
		}
	})
}

// The frame of a request on a stream is bounded and never causes a panic.
func FuzzEnvelope(f *testing.F) {
	var good bytes.Buffer
	if err := writeEnvelope(&good, envelope{Kind: kindRequest, Payload: []byte("x")}); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		if e, err := readEnvelope(bytes.NewReader(data)); err == nil && len(e.Payload) > len(data) {
			t.Errorf("%d bytes were read as a payload of %d", len(data), len(e.Payload))
		}
	})
}
