package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// resolve queries Go's resolver for NAME, ADDRESS and SRV-NAME, and prints the answers.
func resolve(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r := net.Resolver{PreferGo: true}
	addrs, err := r.LookupHost(ctx, args[0])
	if err != nil {
		return err
	}
	names, err := r.LookupAddr(ctx, args[1])
	if err != nil {
		return err
	}
	_, services, err := r.LookupSRV(ctx, "", "", args[2])
	if err != nil {
		return err
	}
	fmt.Println(addrs, names)
	for _, s := range services {
		fmt.Println(s.Target, s.Port)
	}
	return nil
}

// await queries NAME until it exists, or with 1 as the second argument until it does not exist, and
// prints the time.
func await(args []string) error {
	c := dns.Client{Timeout: time.Second}
	m := new(dns.Msg)
	m.SetQuestion(args[0], dns.TypeA)
	fmt.Fprintln(os.Stderr, "watching")
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		r, _, err := c.Exchange(m, "169.254.1.1:53")
		if err != nil {
			return err
		}
		there := len(r.Answer) > 0
		if there == (args[1] == "0") {
			fmt.Println(time.Now().UnixNano())
			return nil
		}
	}
	return fmt.Errorf("%s: no change within 20 s", args[0])
}

// upstream is a name server at ADDRESS. It answers TXT queries with TEXT and the number of queries so
// far, with a TTL of a minute. MODE is good, slow (never answers) or lying (answers another
// question).
func upstream(args []string) error {
	var asked atomic.Int64
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		n := asked.Add(1)
		if args[2] == "slow" {
			return
		}
		r := new(dns.Msg)
		r.SetReply(q)
		name := q.Question[0].Name
		if args[2] == "lying" {
			r.Question[0].Name = "other.example."
			name = "other.example."
		}
		if strings.HasPrefix(name, "missing.") {
			r.Rcode = dns.RcodeNameError
			r.Ns = append(r.Ns, &dns.SOA{
				Hdr: dns.RR_Header{Name: "example.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 60}, Ns: "ns.example.", Mbox: "root.example.", Minttl: 60,
			})
		} else {
			r.Answer = append(r.Answer, &dns.TXT{
				Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}, Txt: []string{args[1], fmt.Sprint(n)},
			})
		}
		_ = w.WriteMsg(r) // the error is ignored: the client may be gone
	})
	failed := make(chan error, 2)
	for _, network := range []string{"udp", "tcp"} {
		s := &dns.Server{Addr: net.JoinHostPort(args[0], "53"), Net: network, Handler: handler}
		go func() { failed <- s.ListenAndServe() }()
	}
	select {
	case err := <-failed:
		return err
	case <-time.After(200 * time.Millisecond):
	}
	fmt.Fprintln(os.Stderr, "serving")
	return <-failed
}
