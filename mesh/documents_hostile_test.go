package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/document"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

func written(t testing.TB, n int, old *document.Document, name, body string) *document.Document {
	t.Helper()
	d, err := document.Next(old, "policy", name, []byte(body), false, time.Now().Unix(), identity(n))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// forged returns a document whose body was changed after it was signed.
func forged(t testing.TB, name string) []byte {
	return bytes.Replace(written(t, 2, nil, name, "allow").Encode(), []byte("allow"), []byte("block"), 1)
}

// askAll fetches as Run does, until nothing is wanted.
func askAll(t testing.TB, d *Documents) {
	t.Helper()
	for range 100 {
		var group sync.WaitGroup
		d.fetch(t.Context(), &group)
		group.Wait()
		d.mu.Lock()
		left := len(d.wanted) + len(d.busy)
		d.mu.Unlock()
		if left == 0 {
			return
		}
	}
	t.Fatalf("after 100 rounds the host still requests documents: %v; want none", d.wanted)
}

// No message causes a panic or endless requests, and unsigned documents are refused.
func FuzzDocuments(f *testing.F) {
	first := written(f, 2, nil, "web", "allow")
	second := written(f, 3, first, "web", "block")
	gone, err := document.Next(second, "policy", "web", nil, true, 0, identity(1))
	if err != nil {
		f.Fatal(err)
	}
	list := [][]byte{first.Encode(), second.Encode(), gone.Encode(), {1}}
	f.Add(encode(documentNews{From: idOf(2), Documents: list}), encode([]document.Held{first.Held(), {}}))
	f.Add(encode(documentNews{From: idOf(3), Held: []document.Held{second.Held(), {Kind: "policy", Version: 1 << 63}}}), encode(documentAnswer{Documents: list}))
	f.Add(encode(documentNews{From: idOf(2), Digest: make([]byte, 32), Synced: true}), encode(documentAnswer{Documents: list[:1], More: true, Synced: true}))
	mark := document.NewMark(second.Version, identity(3))
	f.Add(encode(documentNews{From: idOf(2), Digest: make([]byte, 32), Marks: []document.Mark{mark, {}}}), encode(documentAnswer{Marks: []document.Mark{mark}}))
	f.Add([]byte{0xa0}, []byte{0x80})
	f.Fuzz(func(t *testing.T, gossip, answer []byte) {
		m := &meshtest.Solo{Reply: func(meshtest.Asked) ([]byte, error) { return answer, nil }, Peers: []peer.ID{idOf(2)}}
		d := documents(t, 1, m, &meshtest.Disk{})
		if err := d.Write([]Change{policy("mine", "x")}); err != nil {
			t.Fatal(err)
		}
		for _, data := range [][]byte{gossip, answer} {
			if news, _ := d.Merge(data); len(news) > maxDelta {
				t.Errorf("Merge returned news of %d bytes; want at most maxDelta", len(news))
			}
			_, _ = d.serveMissing(t.Context(), idOf(2), data)
			_, _ = d.serveMissing(t.Context(), idOf(1), data)
			askAll(t, d)
		}
		if d.Get("policy", "mine") == nil || len(d.List("policy")) > 2 {
			t.Errorf("after invalid messages the host has the documents %s; want the policy \"mine\" and at most one other", reads(d))
		}
		if err := d.flush(); err != nil {
			t.Fatal(err)
		}
		if again := documents(t, 1, &meshtest.Solo{}, d.cfg.Store.(*meshtest.Disk)); reads(again) != reads(d) {
			t.Errorf("the documents on disk are %s, in memory %s; want the same", reads(again), reads(d))
		}
	})
}

// Valid documents in a message with invalid ones are stored, and only valid documents are passed
// on.
func TestForgedDocumentsAreDropped(t *testing.T) {
	d := documents(t, 1, &meshtest.Solo{Peers: []peer.ID{idOf(2)}}, &meshtest.Disk{})
	good := written(t, 2, nil, "web", "allow")
	lies := []document.Held{{Kind: "policy", Name: "lie", Version: 99}}
	news, err := d.Merge(encode(documentNews{From: idOf(4), Documents: [][]byte{forged(t, "db"), good.Encode(), {}}, Held: lies, Synced: true}))
	if want := encode(documentNews{From: idOf(1), Documents: [][]byte{good.Encode()}}); err == nil || !slices.Equal(news, want) || reads(d) != "web=allow" {
		t.Errorf("Merge passed on %x, error %v, and the documents are %s; want only the valid document", news, err, reads(d))
	}
	if news, err := d.Merge(encode(documentNews{From: idOf(4), Documents: slices.Repeat([][]byte{good.Encode()}, maxNews+1)})); err == nil || news != nil {
		t.Error("Merge accepted a message with too many documents; want an error")
	}
	if _, err := d.serveMissing(t.Context(), idOf(4), encode(make([]document.Held, maxShown+1))); err == nil {
		t.Error("a request with too many versions was answered; want an error")
	}
}

// A malicious peer announces something new from many peers: the pending requests are bounded.
func TestPendingRequestsAreBounded(t *testing.T) {
	d := documents(t, 1, &meshtest.Solo{}, &meshtest.Disk{})
	for i := range 3 * maxSources {
		data := encode(documentNews{From: peer.ID{byte(i), byte(i >> 8), 1}, Digest: []byte{1}})
		if _, err := d.Merge(data); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.wanted) > maxSources {
		t.Errorf("%d peers are queued for requests; want at most maxSources", len(d.wanted))
	}
}

// Replies are bounded in size; further documents come in the next reply.
func TestMissingDocumentsComeInParts(t *testing.T) {
	from, to := documents(t, 1, &meshtest.Solo{}, &meshtest.Disk{}), documents(t, 2, &meshtest.Solo{}, &meshtest.Disk{})
	for i := range 40 {
		if _, err := from.set.Put(written(t, 3, nil, fmt.Sprint(i), string(make([]byte, document.MaxBody))), time.Now().Unix()); err != nil {
			t.Fatal(err)
		}
	}
	rounds := 0
	var held []byte
	to.cfg.Mesh = &meshtest.Solo{Reply: func(q meshtest.Asked) ([]byte, error) {
		rounds++
		held = q.Payload
		answer, err := from.serveMissing(t.Context(), idOf(2), q.Payload)
		if len(answer) > maxAnswer+1000 {
			t.Errorf("a reply has %d bytes; want at most maxAnswer+1000", len(answer))
		}
		return answer, err
	}}
	if err := to.fetchAll(t.Context(), idOf(1)); err != nil || rounds != 3 || reads(to) != reads(from) {
		t.Errorf("the fetch took %d rounds, error %v, and returned %d documents; want 3 rounds and all documents", rounds, err, to.set.Len())
	}
	if len(held) == 0 || to.set.Digest(0) != from.set.Digest(0) {
		t.Error("after the fetch the digests differ, or nothing was fetched; want the same digest")
	}
}

// A malicious peer repeatedly claims to have the newest documents. The number of requests stays in
// proportion to its claims, true documents still arrive, and no request remains open.
func TestFalseVersionClaimsDoNotDelayDocuments(t *testing.T) {
	endless := written(t, 9, nil, "endless", "x")
	for name, answer := range map[string]func() ([]byte, error){
		"no documents":      func() ([]byte, error) { return encode(documentAnswer{}), nil },
		"an error":          func() ([]byte, error) { return nil, errors.New("no") },
		"no reply":          func() ([]byte, error) { time.Sleep(time.Minute); return nil, nil },
		"garbage":           func() ([]byte, error) { return []byte("garbage"), nil },
		"a forged document": func() ([]byte, error) { return encode(documentAnswer{Documents: [][]byte{forged(t, "web")}}), nil },
		"endlessly more":    func() ([]byte, error) { return encode(documentAnswer{More: true}), nil },
		"a huge list": func() ([]byte, error) {
			return encode(documentAnswer{Documents: slices.Repeat([][]byte{endless.Encode()}, document.MaxHeld+1)}), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, m := four(t)
				rogue, asked := c.Host(idOf(9), nil), &atomic.Int64{}
				rogue.Start(0, meshtest.HostConfig{Handlers: map[string]meshtest.Handler{
					requestMissing: func(context.Context, peer.ID, []byte) ([]byte, error) { asked.Add(1); return answer() },
				}})
				time.Sleep(5 * time.Second)
				const lies = 10
				for i := range lies {
					n := documentNews{From: idOf(9), Held: []document.Held{{Kind: "policy", Name: "web", Version: uint64(1000 + i)}}}
					if i%2 == 0 {
						n = documentNews{From: idOf(9), Digest: []byte{byte(i)}, Synced: true}
					}
					rogue.Broadcast(DocumentsName, encode(n))
					c.write(m[2], policy("web", fmt.Sprint("true-", i)))
					time.Sleep(200 * time.Millisecond)
				}
				c.agree(15*time.Second, fmt.Sprint("web=true-", lies-1))
				time.Sleep(time.Minute)
				if n := asked.Load(); n > 4*lies*2 {
					t.Errorf("4 hosts sent %d requests to the malicious peer; want at most two for each false claim", n)
				}
				before := c.Requests("")
				time.Sleep(time.Minute)
				if n := c.Requests("") - before; n > 0 {
					t.Errorf("%d more requests within a minute, want none", n)
				}
				c.end()
			})
		})
	}
}
