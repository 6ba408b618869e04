package dns

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// packet returns a query: a header with flags and counts, then the bytes in hex, in which NAME stands
// for web.weft.internal. in capitals.
func packet(t *testing.T, flags, qd, an, ns, ar int, body string) []byte {
	t.Helper()
	body = strings.ReplaceAll(body, "NAME", "03574542 0457454654 08494e5445524e414c 00")
	b, err := hex.DecodeString(strings.ReplaceAll(body, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	out := []byte{0xAB, 0xCD}
	for _, v := range []int{flags, qd, an, ns, ar} {
		out = binary.BigEndian.AppendUint16(out, uint16(v))
	}
	return append(out, b...)
}

func TestQueriesGetTheResponseCodeOfTheRFCs(t *testing.T) {
	const (
		rd    = 0x0100
		q     = "NAME 0001 0001"
		opt   = "00 0029 04D0 00000000 0000"
		opt1  = "00 0029 04D0 00010000 0000"                            // EDNS version 1
		optO  = "00 0029 04D0 00008000 000C 000A0008 01020304 05060708" // a cookie
		wrong = "01 41 00 0029 04D0 00000000 0000"                      // OPT of a name
	)
	s := newServer(t, nil)
	for _, tt := range []struct {
		why                   string
		flags, qd, an, ns, ar int
		body, want            string
	}{
		{"a question", rd, 1, 0, 0, 0, q, "NOERROR 2"},
		{"RFC 5452 9: an answer", 0x8100, 1, 0, 0, 0, q, "silence"},
		{"RFC 1035 4.1.2: no question", rd, 0, 0, 0, 0, "", "FORMERR 0"},
		{"RFC 9619: two questions", rd, 2, 0, 0, 0, q + q, "FORMERR 0"},
		{"RFC 1035 4.1.2: half a question", rd, 1, 0, 0, 0, "NAME 00", "FORMERR 0"},
		{"RFC 1035 4.1.1: counts lie", rd, 1, 0, 0, 3, q, "FORMERR 0"},
		{"RFC 1035 4.1.4: a pointer to itself", rd, 1, 0, 0, 0, "C00C 0001 0001", "FORMERR 0"},
		{"RFC 1035 2.3.4: a label of 64 bytes", rd, 1, 0, 0, 0, "40" + strings.Repeat("41", 64) + "00 0001 0001", "FORMERR 0"},
		{"RFC 1035 2.3.4: a name of 256 bytes", rd, 1, 0, 0, 0, strings.Repeat("01 41", 127) + "01 00 0001 0001", "FORMERR 0"},
		{"RFC 1035 3.2.4: class CHAOS", rd, 1, 0, 0, 0, "NAME 0001 0003", "REFUSED 0"},
		{"RFC 1035 3.2.5: class ANY", rd, 1, 0, 0, 0, "NAME 0001 00FF", "REFUSED 0"},
		{"RFC 1035 3.2.3: MAILB", rd, 1, 0, 0, 0, "NAME 00FD 0001", "REFUSED 0"},
		{"RFC 6895 3.1: type 0", rd, 1, 0, 0, 0, "NAME 0000 0001", "REFUSED 0"},
		{"RFC 6891 6.1.1: OPT as a type", rd, 1, 0, 0, 0, "NAME 0029 0001", "REFUSED 0"},
		{"RFC 3425: IQUERY", 1 << 11, 1, 0, 0, 0, q, "NOTIMP 0"},
		{"RFC 1035 4.1.1: STATUS", 2 << 11, 1, 0, 0, 0, q, "NOTIMP 0"},
		{"RFC 1996: NOTIFY", 4 << 11, 1, 0, 0, 0, q, "REFUSED 0"},
		{"RFC 2136: UPDATE", 5 << 11, 1, 0, 0, 0, q, "REFUSED 0"},
		{"RFC 8490: DSO", 6 << 11, 0, 0, 0, 0, "", "NOTIMP 0"},
		{"RFC 6891 6.1.1: OPT", rd, 1, 0, 0, 1, q + opt, "NOERROR 2 opt"},
		{"RFC 6891 6.1.2: unknown options, DO copied", rd, 1, 0, 0, 1, q + optO, "NOERROR 2 opt do"},
		{"RFC 6891 6.1.3: version 1", rd, 1, 0, 0, 1, q + opt1, "BADVERS 0 opt"},
		{"RFC 6891 6.1.1: two OPT", rd, 1, 0, 0, 2, q + opt + opt, "FORMERR 0 opt"},
		{"RFC 6891 6.1.2: OPT with another name than the root", rd, 1, 0, 0, 1, q + wrong, "FORMERR 0"},
		{"RFC 6891 6.1.1: OPT as an answer", rd, 1, 1, 0, 0, q + opt, "FORMERR 0"},
		{"RFC 1035 4.1.3: half a record", rd, 1, 0, 0, 1, q + "00 0029 04D0 00000000 0004 00", "FORMERR 0"},
	} {
		out := raw(t, s, packet(t, tt.flags, tt.qd, tt.an, tt.ns, tt.ar, tt.body), asker{addr: netip.IPv6Loopback()})
		got := "silence"
		if out != nil {
			var r dns.Msg
			if err := r.Unpack(out); err != nil || r.Id != 0xABCD {
				t.Fatalf("%s: answer %x, want a valid one with the query's id: %v", tt.why, out, err)
			}
			got = dns.RcodeToString[r.Rcode] + " " + string(rune('0'+len(r.Answer)))
			if r.Rcode == dns.RcodeBadVers {
				got = "BADVERS 0" // or BADSIG, which has the same code
			}
			if o := r.IsEdns0(); o != nil {
				got += " opt"
				if o.Do() {
					got += " do"
				}
			}
		}
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.why, got, tt.want)
		}
	}
	for n := range headerSize {
		if out := raw(t, s, make([]byte, n), asker{}); out != nil {
			t.Errorf("a message of %d bytes got an answer, want none", n)
		}
	}
}
