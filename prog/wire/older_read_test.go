package wire

import (
	"errors"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

// olderMeaning returns what version 1 decodes from an item, after it verified the signatures. It
// is empty for items without fields: text, bytes, and items that the mesh does not read.
func olderMeaning(name string, data []byte) (string, error) {
	switch {
	case strings.HasPrefix(name, "peer/"):
		return reading(openRecord(data))
	case strings.HasPrefix(name, "ring/"), name == "ipam/inherit-request", strings.HasPrefix(name, "ipam/") && strings.HasSuffix(name, "-answer") && name != "ipam/usage-answer":
		return olderRing(data)
	case strings.HasPrefix(name, "votes/"), name == "ipam/votes-full":
		return reading(decode[v1Votes](data))
	case name == "ipam/usage-answer":
		return reading(decode[v1Usage](data))
	case strings.HasPrefix(name, "directory/set") && !strings.HasPrefix(name, "directory/sets-"), name == "disk/endpoints-another":
		return olderSets([][]byte{data})
	case name == "directory/sets-answer":
		list, err := decode[[][]byte](data)
		return both(err)(olderSets(list))
	case strings.HasPrefix(name, "directory/news"), name == "directory/full":
		return olderSetNews(data)
	case name == "documents/policy", name == "documents/namespace", name == "documents/tombstone":
		return reading(openDocument(data))
	case strings.HasPrefix(name, "documents/news"), name == "documents/full":
		n, err := decode[v1DocumentNews](data)
		out, bad := olderDocuments(n.Documents)
		return out + show(n.Held) + show(n.Digest), errors.Join(err, bad)
	case name == "documents/missing-answer":
		a, err := decode[v1DocumentAnswer](data)
		return both(err)(olderDocuments(a.Documents))
	}
	return olderMessage(name, data)
}

func reading[T any](v T, err error) (string, error) { return show(v), err }

// both joins an error with that of the following call.
func both(err error) func(string, error) (string, error) {
	return func(out string, bad error) (string, error) { return out, errors.Join(err, bad) }
}

func olderRing(data []byte) (string, error) {
	r, err := decode[v1Ring](data)
	for i, s := range r.Segments {
		if len(s) < 5 {
			return "", errors.New("version 1: a segment has fewer than 5 elements")
		}
		r.Segments[i] = s[:5]
	}
	return show(r), err
}

func olderSets(list [][]byte) (out string, err error) {
	for _, data := range list {
		s, endpoints, bad := openSet(data)
		out, err = out+show(s.Version)+show(endpoints), errors.Join(err, bad)
	}
	return out, err
}

func olderSetNews(data []byte) (out string, err error) {
	n, err := decode[v1SetNews](data)
	out = show(n.From) + show(n.Held)
	if n.Delta == nil || err != nil {
		return out, err
	}
	d, err := decode[v1SetDelta](n.Delta)
	for _, put := range d.Put {
		e, bad := decode[v1Endpoint](put)
		out, err = out+show(e), errors.Join(err, bad)
	}
	return out + show(d.Owner) + show(d.From) + show(d.To) + show(d.Gone), err
}

func olderDocuments(list [][]byte) (out string, err error) {
	for _, data := range list {
		doc, bad := openDocument(data)
		out, err = out+show(doc), errors.Join(err, bad)
	}
	return out, err
}

// olderMessage returns what version 1 decodes from a message of the mesh.
func olderMessage(name string, data []byte) (string, error) {
	switch {
	case strings.HasPrefix(name, "mesh/hello"):
		return reading(decode[v1Hello](data))
	case strings.HasPrefix(name, "mesh/push-pull"):
		parts, err := decode[map[string]cbor.RawMessage](data)
		peers, bad := decode[[]byte](parts["peers"])
		return both(errors.Join(err, bad))(olderRecords(peers))
	case name == "mesh/delta":
		e, err := decode[v1Envelope](data)
		return both(err)(olderRecords(e.Payload))
	case strings.HasPrefix(name, "mesh/"):
		e, err := decode[v1Envelope](data)
		m, _, bad := openMessage(e.Payload)
		return show(m), errors.Join(err, bad)
	}
	return "", nil
}

func olderRecords(data []byte) (out string, err error) {
	list, err := decode[[][]byte](data)
	for _, one := range list {
		r, bad := openRecord(one)
		out, err = out+show(r), errors.Join(err, bad)
	}
	return out, err
}

// An agent of version 1 reads what all later versions write, recorded or future. The fields that
// it knows have the same meaning.
func TestFirstWireVersionReadsLaterVersions(t *testing.T) {
	first, _ := load(t, versions()[0])
	for _, version := range versions() {
		data, _ := load(t, version)
		scene = data
		for _, name := range sorted(first) {
			want, err := olderMeaning(name, first[name])
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if strings.HasPrefix(name, "mesh/hello") && !protocol1[version] {
				want = "Version: 2\n" // all that version 1 reads: it refuses the peer for that
			}
			later := map[string][]byte{version: data[name]}
			if newer := items()[name].newer; newer != nil {
				later["one after "+version] = newer(data[name])
			}
			for who, bytes := range later {
				if got, err := olderMeaning(name, bytes); err != nil || got != want {
					t.Errorf("version 1 decodes %s of %s as\n%s%v\nwant the same as of its own item\n%s", name, who, got, err, want)
				}
			}
		}
	}
}

// thirdMeaning returns what version 3 decodes from an item that it has added. It is empty for items
// that earlier versions have, and for text.
func thirdMeaning(name string, data []byte) (string, error) {
	switch name {
	case "mesh/hello", "mesh/hello-joining":
		h, _, err := openHello(data, nameInMemberlist(alpha), address(alpha))
		_, bad := openCertificate(h.Identity, h.Certificate)
		return show(h), errors.Join(err, bad)
	case "member/certificate":
		return reading(openCertificate(public(alpha), data))
	case "member/admitted":
		return reading(openCertificate(public(delta), data))
	case "peer/admitted":
		r, err := openRecord(data)
		extra, bad := decode[struct {
			Certificate []byte `cbor:"14,keyasint"`
		}](must(decode[v1Signed](data)).Content)
		out, invalid := reading(openCertificate(r.Identity, extra.Certificate))
		return show(r) + out, errors.Join(err, bad, invalid)
	case "documents/token":
		return olderBody[v3TokenBody](data)
	case "documents/join":
		return olderBody[v3JoinBody](data)
	case "documents/ban":
		return olderBody[v3BanBody](data)
	case "session/greeting", "session/welcome", "session/refusal", "session/ready":
		return reading(decode[v3Greeting](data))
	}
	return "", nil
}

// olderBody returns a document, and its body instead of the bytes of the body.
func olderBody[T any](data []byte) (string, error) {
	doc, err := openDocument(data)
	body, bad := decode[T](doc.Body)
	doc.Body = nil
	return show(doc) + show(body), errors.Join(err, bad)
}

// An agent of version 3, the first one of protocol version 2, reads what all later versions write.
func TestThirdWireVersionReadsLaterVersions(t *testing.T) {
	third, _ := load(t, "v3")
	for _, version := range versions() {
		if protocol1[version] {
			continue
		}
		data, _ := load(t, version)
		scene = data
		for _, name := range sorted(third) {
			want, err := thirdMeaning(name, third[name])
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			later := map[string][]byte{version: data[name]}
			if newer := items()[name].newer; newer != nil {
				later["one after "+version] = newer(data[name])
			}
			for who, bytes := range later {
				if got, err := thirdMeaning(name, bytes); err != nil || got != want {
					t.Errorf("version 3 decodes %s of %s as\n%s%v\nwant the same as of its own item\n%s", name, who, got, err, want)
				}
			}
		}
	}
}
