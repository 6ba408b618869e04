package wire

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh"
	"weft/mesh/document"
	"weft/mesh/meshtest"
)

// These items contain documents: in gossip, in requests and on disk.

var documentItems = map[string]item{
	"documents/policy":          {what: "a policy", read: readDocument, newer: newerDocument},
	"documents/namespace":       {what: "labels of a namespace", read: readDocument, newer: newerDocument},
	"documents/tombstone":       {what: "a policy that was deleted", read: readDocument, newer: newerDocument},
	"documents/news-documents":  {what: "gossip: two complete documents", read: readDocumentNews, newer: newerNews},
	"documents/news-held":       {what: "gossip: alpha has a large document", read: readDocumentNews, newer: newerNews},
	"documents/full":            {what: "push/pull: a digest of all that alpha has", read: readDocumentNews, newer: newerNews},
	"documents/missing-request": {what: "request documents/missing: what charlie has", read: readMissingRequest, newer: each(withFields)},
	"documents/missing-all":     {what: "the same request from a peer without documents", read: readMissingRequest},
	"documents/missing-answer":  {what: "the answer to both: what is missing", read: readMissingAnswer, newer: newerAnswer},
	"disk/document":             {what: "in bucket documents: one of them", read: readKeptDocument, newer: newerAnswerOne},
	"disk/marks":                {what: "in bucket documents: how far the numbers of each writer had come", read: readKeptMarks, newer: withFields},
}

// newerNews adds unknown fields to the gossip, its documents and its list of held documents.
func newerNews(data []byte) []byte {
	n := must(decode[v1DocumentNews](data))
	if len(n.Documents) > 0 {
		data = within(data, 2, each(wrapped(newerDocument)))
	}
	if len(n.Held) > 0 {
		data = within(data, 3, each(withFields))
	}
	return withFields(data)
}

func newerAnswer(data []byte) []byte {
	return withFields(within(data, 1, each(wrapped(newerDocument))))
}

func newerAnswerOne(data []byte) []byte { return withFields(within(data, 1, wrapped(newerDocument))) }

const policyBody = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
`

const namespaceBody = `apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {team: shop}}
`

func documentsOf(n int, s *station, disk *shelf, kept ...[]byte) *mesh.Documents {
	return must(mesh.NewDocuments(mesh.DocumentsConfig{
		Identity: key(n), Mesh: s, Store: disk, Documents: kept, Now: func() time.Time { return now }, Log: quiet, Changed: nothing,
	}))
}

func produceDocuments(t *testing.T) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	s, disk := &station{}, newShelf()
	a := documentsOf(alpha, s, disk)
	apply := func(changes ...mesh.Change) {
		t.Helper()
		if err := a.Write(changes); err != nil {
			t.Fatal(err)
		}
	}
	apply(mesh.Change{Kind: "networkpolicy", Name: "default/web", Body: []byte(policyBody)}, mesh.Change{Kind: "namespace", Name: "default", Body: []byte(namespaceBody)})
	all["documents/news-documents"] = s.last()
	list := must(decode[v1DocumentNews](s.last())).Documents
	all["documents/policy"], all["documents/namespace"] = list[0], list[1]
	apply(mesh.Change{Kind: "networkpolicy", Name: "default/old", Body: []byte(policyBody)})
	apply(mesh.Change{Kind: "networkpolicy", Name: "default/old", Deleted: true})
	all["documents/tombstone"] = must(decode[v1DocumentNews](s.last())).Documents[0]
	apply(mesh.Change{Kind: "networkpolicy", Name: "default/large", Body: []byte(policyBody + strings.Repeat("# and so on\n", 200))})
	all["documents/news-held"] = s.last()
	if err := a.MarkSynced(); err != nil {
		t.Fatal(err)
	}
	all["documents/full"], all["disk/document"] = a.Full(), disk.Documents()[document.Key("networkpolicy", "default/web")]
	all["disk/marks"] = disk.Documents()["\x00marks"]
	ask := func(payload []byte) []byte {
		return must(a.Handlers()["documents/missing"](t.Context(), id(charlie), payload))
	}
	synctest.Test(t, func(t *testing.T) {
		for name, kept := range map[string][][]byte{"documents/missing-all": nil, "documents/missing-request": {all["disk/document"]}} {
			there := among([]int{alpha}, func(q meshtest.Asked) ([]byte, error) { return ask(q.Payload), nil })
			c := documentsOf(charlie, there, newShelf(), kept...)
			if _, err := c.Merge(all["documents/full"]); err != nil {
				t.Fatal(err)
			}
			during(t, c.Run, 2*time.Second)
			all[name] = there.questions("documents/missing")[0]
		}
	})
	all["documents/missing-answer"] = ask(all["documents/missing-all"])
	return all
}

func readDocument(t *testing.T, data []byte) string {
	t.Helper()
	d, err := document.Decode(data)
	if err != nil {
		return show(err)
	}
	return tell("of "+nameOf(d.WriterID())+"\n", show(map[string]any{
		"kind": d.Kind, "name": d.Name, "version": d.Version, "written": d.Written, "deleted": d.Deleted, "body": string(d.Body),
	}))
}

// describeDocuments lists all documents that are not deleted.
func describeDocuments(d *mesh.Documents) (out string) {
	for _, kind := range []string{"namespace", "networkpolicy"} {
		for _, doc := range d.List(kind) {
			out += fmt.Sprintf("version %d of %s %s, %d bytes\n", doc.Version, doc.Kind, doc.Name, len(doc.Body))
		}
	}
	return out
}

// readDocumentNews returns the effect of gossip on a peer whose only document is the
// tombstone.
func readDocumentNews(t *testing.T, data []byte) (out string) {
	t.Helper()
	old := scene["documents/tombstone"]
	synctest.Test(t, func(t *testing.T) {
		s := among([]int{alpha})
		d := documentsOf(echo, s, newShelf(), encode(v1Kept{old, now.Unix()}))
		passedOn, err := d.Merge(data)
		during(t, d.Run, 50*time.Millisecond)
		out = tell(show(map[string]any{"error": err, "passed on": len(passedOn) > 0}), describeDocuments(d), s.describe())
	})
	return out
}

type v1Kept struct {
	Document []byte `cbor:"1,keyasint"`
	Since    int64  `cbor:"2,keyasint"`
}

func readMissingRequest(t *testing.T, data []byte) string {
	t.Helper()
	var kept [][]byte
	for _, doc := range [][]byte{scene["documents/policy"], scene["documents/namespace"], scene["documents/tombstone"]} {
		kept = append(kept, encode(v1Kept{doc, now.Unix()}))
	}
	answer, err := documentsOf(alpha, &station{}, newShelf(), kept...).Handlers()["documents/missing"](t.Context(), id(charlie), data)
	if err != nil {
		return show(err)
	}
	out := "is answered with\n"
	for _, doc := range must(decode[v1DocumentAnswer](answer)).Documents {
		out += readDocument(t, doc)
	}
	return out
}

// readMissingAnswer returns the effect of the reply on a peer without documents.
func readMissingAnswer(t *testing.T, data []byte) (out string) {
	t.Helper()
	news := scene["documents/full"]
	synctest.Test(t, func(t *testing.T) {
		d := documentsOf(echo, among([]int{alpha}, func(meshtest.Asked) ([]byte, error) { return data, nil }), newShelf())
		_, err := d.Merge(news)
		during(t, d.Run, time.Second)
		out = tell(describeDocuments(d), show(map[string]any{"error": err, "knows all that there is": d.Synced()}))
	})
	return out
}

// readKeptMarks returns what happens to an old document of alpha that this peer had and deleted
// before.
func readKeptMarks(t *testing.T, data []byte) string {
	t.Helper()
	d := documentsOf(echo, among([]int{alpha}), newShelf(), data)
	passedOn, err := d.Merge(encode(v1DocumentNews{From: id(alpha), Documents: [][]byte{scene["documents/policy"]}}))
	if err != nil || passedOn == nil {
		return show(map[string]any{"error": err})
	}
	return "an old document comes back, and is passed on as\n" + readDocument(t, must(decode[v1DocumentNews](passedOn)).Documents[0])
}

func readKeptDocument(t *testing.T, data []byte) string {
	t.Helper()
	return describeDocuments(documentsOf(echo, &station{}, newShelf(), data))
}
