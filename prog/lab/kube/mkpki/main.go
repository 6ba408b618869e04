// Mkpki writes a test cluster's certificates and kubeconfigs into a folder: the authorities and those
// of the control plane at the first call, and those of the named nodes at each call.
//
//	mkpki -dir pki -server https://192.0.2.1:6443 -ip 192.0.2.1,10.96.0.1 node1=192.0.2.11,2001:db8::11
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"flag"
	"fmt"
	"log"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// pki is the folder, with the API server's URL for the kubeconfigs.
type pki struct {
	dir, server string
}

type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("mkpki: ")
	var p pki
	flag.StringVar(&p.dir, "dir", "pki", "output folder")
	flag.StringVar(&p.server, "server", "", "URL of the API server")
	ips := flag.String("ip", "127.0.0.1", "addresses of the API server, comma separated")
	flag.Parse()
	check(os.MkdirAll(p.dir, 0o700))

	ca, made := p.authority("ca")
	if made {
		p.controlPlane(ca, parseIPs(*ips))
	}
	for _, arg := range flag.Args() {
		node, ips, ok := strings.Cut(arg, "=")
		if !ok {
			log.Fatalf("invalid argument: want NODE=IP,IP, got %q", arg)
		}
		p.issue(ca, "kubelet-"+node, pkix.Name{CommonName: node}, parseIPs(ips), node)
		p.client(ca, node, "system:node:"+node, "system:nodes")
	}
}

// controlPlane writes everything that does not depend on nodes.
func (p pki) controlPlane(ca *authority, ips []net.IP) {
	const service = "kubernetes.default.svc.cluster.local"
	p.issue(ca, "apiserver", pkix.Name{CommonName: "kube-apiserver"}, ips,
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", service, "localhost")
	p.issue(ca, "apiserver-kubelet-client", pkix.Name{CommonName: "kube-apiserver", Organization: []string{"system:masters"}}, nil)
	front, _ := p.authority("front-proxy-ca")
	p.issue(front, "front-proxy-client", pkix.Name{CommonName: "front-proxy-client"}, nil)

	sa := newKey()
	p.writeKey("sa.key", sa)
	pub, err := x509.MarshalPKIXPublicKey(sa.Public())
	check(err)
	p.write("sa.pub", "PUBLIC KEY", pub)

	p.client(ca, "admin", "admin", "system:masters")
	for _, name := range []string{"kube-controller-manager", "kube-scheduler", "kube-proxy"} {
		p.client(ca, name, "system:"+name)
	}
}

// authority reads a certificate authority, or makes it and reports that.
func (p pki) authority(name string) (a *authority, made bool) {
	if b, err := os.ReadFile(filepath.Join(p.dir, name+".crt")); err == nil {
		cert, err := x509.ParseCertificate(unpack(b))
		check(err)
		b, err = os.ReadFile(filepath.Join(p.dir, name+".key"))
		check(err)
		key, err := x509.ParsePKCS8PrivateKey(unpack(b))
		check(err)
		return &authority{cert: cert, key: key.(crypto.Signer)}, false // the key is an ECDSA key, since this program wrote it
	}
	key := newKey()
	tmpl := template(pkix.Name{CommonName: "weft-lab-" + name})
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	check(err)
	cert, err := x509.ParseCertificate(der)
	check(err)
	p.writeKey(name+".key", key)
	p.write(name+".crt", "CERTIFICATE", der)
	return &authority{cert: cert, key: key}, true
}

// issue writes a certificate for clients and servers with its key, and returns both.
func (p pki) issue(ca *authority, file string, name pkix.Name, ips []net.IP, dns ...string) (cert, key []byte) {
	k := newKey()
	tmpl := template(name)
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	tmpl.IPAddresses, tmpl.DNSNames = ips, dns
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, k.Public(), ca.key)
	check(err)
	return p.write(file+".crt", "CERTIFICATE", der), p.writeKey(file+".key", k)
}

// client writes the kubeconfig of a user.
func (p pki) client(ca *authority, file, user string, groups ...string) {
	cert, key := p.issue(ca, "client-"+file, pkix.Name{CommonName: user, Organization: groups}, nil)
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
	b64 := base64.StdEncoding.EncodeToString
	config := fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: lab
clusters: [{name: lab, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: lab, user: {client-certificate-data: %s, client-key-data: %s}}]
contexts: [{name: lab, context: {cluster: lab, user: lab}}]
`, p.server, b64(root), b64(cert), b64(key))
	check(os.WriteFile(filepath.Join(p.dir, file+".kubeconfig"), config, 0o600))
}

func template(name pkix.Name) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	check(err)
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: name, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0)}
}

func parseIPs(s string) (ips []net.IP) {
	for f := range strings.SplitSeq(s, ",") {
		ip := net.ParseIP(f)
		if ip == nil {
			log.Fatalf("invalid address %q", f)
		}
		ips = append(ips, ip)
	}
	return ips
}

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	return key
}

func (p pki) writeKey(file string, key *ecdsa.PrivateKey) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	check(err)
	return p.write(file, "PRIVATE KEY", der)
}

func (p pki) write(file, kind string, der []byte) []byte {
	b := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	check(os.WriteFile(filepath.Join(p.dir, file), b, 0o600))
	return b
}

func unpack(b []byte) []byte {
	block, _ := pem.Decode(b)
	if block == nil {
		log.Fatal("a file in the folder is not PEM: remove the folder, and run mkpki again")
	}
	return block.Bytes
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
