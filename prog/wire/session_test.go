package wire

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// These items are what two peers say after TLS's handshake. They are captured from the simulated
// network, and replayed on it, by an end of a stream that is written out independently of the current
// code. The packets of a session are not recorded: their keys are new for each session.

var sessionItems = map[string]item{
	"session/greeting": {what: "the dialing end, alpha: its run, what the stream is for, where it receives packets, its certificate", read: readGreeting, newer: withFields},
	"session/welcome":  {what: "the accepting end, alpha", read: readWelcome, newer: withFields},
	"session/refusal":  {what: "the accepting end, alpha, refuses a peer without a certificate", read: readWelcome, newer: withFields},
	"session/ready":    {what: "the dialing end, alpha, is content with the welcome", read: readReady, newer: withFields},
}

// fixedIndex replaces the random index of a session when a greeting is recorded.
const fixedIndex = 7

// end is one end of a stream in protocol version 2.
type end struct {
	*tls.Conn
	raw net.Conn
}

// Close ends the stream without TLS's close_notify, as agents do.
func (e end) Close() error { return e.raw.Close() }

// over shakes hands on a connection of a peer of the corpus. Both ends show a self-signed certificate.
func over(n int, c net.Conn, handshake func(net.Conn, *tls.Config) *tls.Conn) (end, error) {
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key(n).Public(), key(n)))
	_ = c.SetDeadline(time.Now().Add(patience)) // if this fails, so does the handshake
	s := handshake(c, &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key(n)}}, MinVersion: tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}, NextProtos: []string{"weft/2"},
		ClientAuth: tls.RequireAnyClientCert, InsecureSkipVerify: true, // the tests look at the certificate of the corpus instead
	})
	return end{s, c}, s.Handshake()
}

// say sends a greeting, with its length in two bytes in front.
func (e end) say(data []byte) error {
	_, err := e.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(data))), data...))
	return err
}

func (e end) hear() ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(e, head[:]); err != nil {
		return nil, err
	}
	data := make([]byte, binary.BigEndian.Uint16(head[:]))
	_, err := io.ReadFull(e, data)
	return data, err
}

// dial sends a greeting of one peer of the corpus to another, and returns the welcome or refusal.
func (s *stage) dial(from, to int, greeting []byte) (e end, answer []byte, err error) {
	c, err := s.net.Join(address(from)).DialTimeout(address(to).String(), patience)
	if err != nil {
		return e, nil, err
	}
	if e, err = over(from, c, tls.Client); err == nil {
		err = e.say(greeting)
	}
	if err == nil {
		answer, err = e.hear()
	}
	if err != nil {
		c.Close()
	}
	return e, answer, err
}

// accept answers the next stream to a peer of the corpus, and returns what its other end said.
func accept(n int, network *meshtest.Transport, welcome []byte) (greeting, ready []byte, err error) {
	select {
	case c := <-network.StreamCh():
		defer c.Close()
		e, err := over(n, c, tls.Server)
		if err != nil {
			return nil, nil, err
		}
		if greeting, err = e.hear(); err == nil {
			err = e.say(welcome)
		}
		if err == nil {
			ready, err = e.hear()
		}
		return greeting, ready, err
	case <-time.After(time.Minute):
		return nil, nil, errors.New("nobody opened a stream")
	}
}

func welcomeOf(n int) []byte {
	return encode(v3Greeting{Run: nameInMemberlist(n), Index: 9, Body: certificate(n)})
}

// fixed replaces what is random in a greeting of alpha.
func fixed(data []byte) []byte {
	data = within(data, 1, func([]byte) []byte { return encode(nameInMemberlist(alpha)) })
	return within(data, 3, func([]byte) []byte { return encode(fixedIndex) })
}

func produceSession(t *testing.T) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	onStage(t, func(t *testing.T, s *stage) {
		network := s.net.Join(address(bravo))
		a := s.today(alpha, settled(alpha), bravo)
		s.run(a.Run)
		greeting, ready, err := accept(bravo, network, welcomeOf(bravo))
		if err != nil {
			t.Fatal(err)
		}
		all["session/greeting"], all["session/ready"] = fixed(greeting), ready
		answer := func(body []byte) []byte {
			e, data, err := s.dial(charlie, alpha, encode(v3Greeting{Run: nameInMemberlist(charlie), Use: v3Gossip, Index: 9, Body: body}))
			if err != nil {
				t.Fatal(err)
			}
			e.Close()
			return data
		}
		all["session/welcome"] = fixed(answer(certificate(charlie)))
		named := within(answer(nil), 1, func([]byte) []byte { return encode(nameInMemberlist(alpha)) })
		all["session/refusal"] = within(named, 5, func([]byte) []byte { return encode("a reason for people, which may change") })
	})
	return all
}

// readGreeting returns how delta answers the greeting.
func readGreeting(t *testing.T, data []byte) (out string) {
	t.Helper()
	onStage(t, func(t *testing.T, s *stage) {
		d := s.today(delta, record(delta))
		s.run(d.Run)
		time.Sleep(time.Second)
		g := must(decode[v3Greeting](data))
		e, answer, err := s.dial(alpha, delta, data)
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		w := must(decode[v3Greeting](answer))
		out = tell("says it is "+runOf(g.Run)+"\n", describeMember(public(alpha), g.Body), show(map[string]any{
			"stream for gossip": g.Use == v3Gossip, "receives packets": g.Index != 0,
			"answered by": runOf(w.Run), "answer is refusal": w.Refuse, "packets are welcome": w.Index != 0,
		}), describeMember(public(delta), w.Body), describeRejections(d))
	})
	return out
}

// runOf returns the peer whose run has the given name.
func runOf(name string) string {
	if len(name) < 16 {
		return "nobody"
	}
	return nameOf(must(peer.ParseID(name[:16])))
}

// readWelcome returns what delta, which dialed alpha, makes of the answer.
func readWelcome(t *testing.T, data []byte) (out string) {
	t.Helper()
	onStage(t, func(t *testing.T, s *stage) {
		network := s.net.Join(address(alpha))
		d := s.today(delta, record(delta), alpha)
		s.run(d.Run)
		_, ready, err := accept(alpha, network, data)
		time.Sleep(time.Second)
		if w := must(decode[v3Greeting](data)); w.Refuse == "" {
			out = tell("says it is "+runOf(w.Run)+"\n", describeMember(public(alpha), w.Body), show(map[string]any{
				"receives packets": w.Index != 0, "delta is content": err == nil && must(decode[v3Greeting](ready)).Refuse == "",
			}))
			return
		}
		for _, target := range d.Targets() {
			out += show(map[string]any{"delta reports of " + target.Host: target.Err})
		}
	})
	return out
}

// readReady returns whether delta serves a request on a stream after the given message.
func readReady(t *testing.T, data []byte) (out string) {
	t.Helper()
	onStage(t, func(t *testing.T, s *stage) {
		d := s.today(delta, record(delta))
		s.run(d.Run)
		time.Sleep(time.Second)
		hello := v3Greeting{Run: nameInMemberlist(alpha), Use: v3Request, Index: 9, Body: certificate(alpha)}
		e, welcome, err := s.dial(alpha, delta, encode(hello))
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		m := v1Message{ID: fixedID, From: id(alpha), To: id(delta), Kind: "no/such/thing", Run: must(decode[v3Greeting](welcome)).Run}
		if err := e.say(data); err != nil {
			t.Fatal(err)
		}
		writeFrame(e, seal(alpha, v1Request, m, scriptedRecord(alpha)))
		answer, _, err := openMessage(must(decode[v1Envelope](readFrame(e))).Payload)
		out = show(map[string]any{"error": err, "number of the reply": answer.ID == fixedID, "is reply": answer.IsReply})
	})
	return out
}
