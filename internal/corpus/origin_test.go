package corpus

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
)

// echo is what an origin saw of a request, or of a connection without HTTP.
type echo struct {
	// Cluster is the one whose endpoint was reached.
	Cluster string
	// Via are the CONNECT requests, outermost first.
	Via []hop
	// SNI and Client are of the innermost TLS: what was asked for, and the
	// subject or SPIFFE ID that the client showed.
	SNI, Client string
	// Proxied is the line of a PROXY protocol header, or "v2".
	Proxied      string
	Proto        string
	Method, Path string
	Host         string
	Header       http.Header
}

// hop is a CONNECT request.
type hop struct {
	Authority string
	Header    http.Header
}

// origins is everything behind the proxy: an address on loopback for each
// endpoint, all with the same port for tunnels, and one server that answers
// whatever is spoken there with what it saw.
type origins struct {
	t    *testing.T
	ca   *identity.DevCA
	mesh *tls.Certificate
	port int // of tunnels
	next int

	srv   *http.Server
	conns chan net.Conn
	done  chan struct{}
	group sync.WaitGroup
	ls    []net.Listener

	mu   sync.Mutex
	seen map[string][]string // clusters by the id of the request
}

// nets counts the scenarios of this process, so that none shares addresses.
var nets atomic.Int32

func newOrigins(t *testing.T, ca *identity.DevCA) *origins {
	t.Helper()
	mesh, err := ca.Issue(identity.Leaf{URIs: []string{"spiffe://cluster.local/ns/app/sa/app"}})
	if err != nil {
		t.Fatal(err)
	}
	o := &origins{t: t, ca: ca, mesh: mesh, conns: make(chan net.Conn), done: make(chan struct{}), seen: map[string][]string{}}
	o.next = (os.Getpid()*61 + int(nets.Add(1))*2) % (64 * 256) << 8 // 512 addresses; processes are apart
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	o.srv = &http.Server{
		Handler: http.HandlerFunc(o.answer), Protocols: &p, ReadHeaderTimeout: time.Minute,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, seenKey{}, c.(*spoken).seen)
		},
	}
	o.group.Go(func() { _ = o.srv.Serve(o) })
	t.Cleanup(func() {
		close(o.done)
		for _, l := range o.ls {
			_ = l.Close()
		}
		_ = o.srv.Close()
		o.group.Wait()
	})
	return o
}

type seenKey struct{}

// Accept implements net.Listener with the connections on which HTTP is spoken.
func (o *origins) Accept() (net.Conn, error) {
	select {
	case c := <-o.conns:
		return c, nil
	case <-o.done:
		return nil, net.ErrClosed
	}
}

func (o *origins) Close() error   { return nil }
func (o *origins) Addr() net.Addr { return &net.TCPAddr{} }

// socket listens on the next loopback address. Port 0 is any.
func (o *origins) socket(port int) (net.Listener, error) {
	o.next++
	return (&net.ListenConfig{}).Listen(o.t.Context(), "tcp", fmt.Sprintf("127.%d.%d.%d:%d", 32+o.next>>16&63, o.next>>8&255, o.next&255, port))
}

// free is an address for a listener of the proxy. Nobody else takes its port in
// between: nothing connects from, or listens on, that address.
func (o *origins) free() netip.AddrPort {
	o.t.Helper()
	for range 100 {
		l, err := o.socket(0)
		if err != nil {
			continue
		}
		a := netip.MustParseAddrPort(l.Addr().String())
		_ = l.Close()
		return a
	}
	o.t.Fatal("no free address")
	return netip.AddrPort{}
}

// listen serves cluster on a loopback address of its own. Port 0 is any.
func (o *origins) listen(cluster string, port int) *net.TCPAddr {
	o.t.Helper()
	for range 100 {
		l, err := o.socket(port)
		if err != nil {
			continue
		}
		o.ls = append(o.ls, l)
		o.group.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				o.group.Go(func() { o.serve(&spoken{Conn: c, seen: echo{Cluster: cluster}}) })
			}
		})
		return l.Addr().(*net.TCPAddr)
	}
	o.t.Fatalf("no address for %s", cluster)
	return nil
}

// plain is an endpoint that is dialled as it is.
func (o *origins) plain(cluster string) *net.TCPAddr { return o.listen(cluster, 0) }

// tunnelled is the address of an endpoint that is dialled on the port of
// tunnels, whatever its own.
func (o *origins) tunnelled(cluster string) string {
	a := o.listen(cluster, o.port)
	o.port = a.Port
	return a.IP.String()
}

// spoken is a connection whose first bytes have been looked at.
type spoken struct {
	net.Conn
	r    *bufio.Reader
	seen echo
}

func (s *spoken) Read(p []byte) (int, error) {
	if s.r == nil {
		return s.Conn.Read(p)
	}
	return s.r.Read(p)
}

// serve finds out what is spoken on c, layer by layer, and answers.
func (o *origins) serve(c *spoken) {
	raw := c.Conn // c is another one after a handshake
	stop := context.AfterFunc(o.t.Context(), func() { _ = raw.Close() })
	defer stop()
	c.r = bufio.NewReader(c.Conn)
	for {
		b, err := c.r.Peek(8)
		if err != nil {
			_ = c.Close()
			return
		}
		switch {
		case b[0] == 0x16:
			if c = o.handshake(c); c == nil {
				return
			}
			continue
		case strings.HasPrefix(string(b), "PROXY "):
			c.seen.Proxied, err = c.r.ReadString('\n')
		case strings.HasPrefix(string(b), "\r\n\r\n\x00\r\n"):
			err = c.proxyV2()
		case b[0] >= 'A' && b[0] <= 'Z':
			select {
			case o.conns <- c:
			case <-o.done:
				_ = c.Close()
			}
			return
		default:
			o.echoTCP(c)
			return
		}
		if err != nil {
			_ = c.Close()
			return
		}
	}
}

func (s *spoken) proxyV2() error {
	head := make([]byte, 16)
	if _, err := io.ReadFull(s.r, head); err != nil {
		return err
	}
	_, err := s.r.Discard(int(head[14])<<8 | int(head[15]))
	s.seen.Proxied = fmt.Sprintf("v2 command %d", head[12]&15)
	return err
}

// handshake accepts TLS with a certificate for whatever is asked for; without
// a name, or with one of the mesh, the mesh certificate.
func (o *origins) handshake(c *spoken) *spoken {
	t := tls.Server(c, &tls.Config{
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: o.ca.Roots(), NextProtos: []string{"h2", "http/1.1", "istio-peer-exchange", "istio", "acme"}, MinVersion: tls.VersionTLS12,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if h.ServerName == "" || strings.HasPrefix(h.ServerName, "outbound_") {
				return o.mesh, nil
			}
			return o.ca.Issue(identity.Leaf{DNSNames: []string{h.ServerName}})
		},
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil
	}
	cs := t.ConnectionState()
	n := &spoken{Conn: t, r: bufio.NewReader(t), seen: c.seen}
	n.seen.SNI = cs.ServerName
	n.seen.Client = ""
	if len(cs.PeerCertificates) > 0 {
		leaf := cs.PeerCertificates[0]
		n.seen.Client = leaf.Subject.CommonName
		if len(leaf.URIs) > 0 {
			n.seen.Client = leaf.URIs[0].String()
		}
	}
	return n
}

// echoTCP answers one line with what was seen, and ends.
func (o *origins) echoTCP(c *spoken) {
	defer c.Close()
	line, err := c.r.ReadString('\n')
	if err != nil {
		return
	}
	c.seen.Proto, c.seen.Path = "tcp", strings.TrimSpace(line)
	_ = json.NewEncoder(c).Encode(&c.seen)
}

// answer tells the client what arrived, or goes on inside a tunnel.
func (o *origins) answer(w http.ResponseWriter, r *http.Request) {
	e, _ := r.Context().Value(seenKey{}).(echo)
	if r.Method == http.MethodConnect {
		o.tunnel(e, w, r)
		return
	}
	_, _ = io.Copy(io.Discard, r.Body)
	e.Proto, e.Method, e.Path, e.Host, e.Header = r.Proto, r.Method, r.RequestURI, r.Host, r.Header
	if id := r.Header.Get(idHeader); id != "" {
		o.mu.Lock()
		o.seen[id] = append(o.seen[id], e.Cluster)
		o.mu.Unlock()
	}
	w.Header().Set("content-type", "application/json")
	w.Header().Set("x-rrm", "to be removed")
	if strings.HasPrefix(r.Header.Get("content-type"), "application/grpc") {
		w.Header().Set("content-type", "application/grpc")
		w.Header().Set(http.TrailerPrefix+"grpc-status", "0")
	}
	_ = json.NewEncoder(w).Encode(&e)
}

func (o *origins) tunnel(e echo, w http.ResponseWriter, r *http.Request) {
	e.Via = append(slices.Clone(e.Via), hop{r.Host, r.Header})
	ours, theirs := net.Pipe()
	o.group.Go(func() { o.serve(&spoken{Conn: theirs, seen: e}) })
	rc := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	_ = rc.Flush()
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = io.Copy(ours, r.Body)
		_ = ours.Close()
	})
	buf := make([]byte, 16<<10)
	for {
		n, err := ours.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil || rc.Flush() != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	_ = ours.Close()
	_ = r.Body.Close()
	up.Wait()
}

// reached lists the clusters that saw the request id.
func (o *origins) reached(id string) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.seen[id]...)
}
