package upstream

import (
	"context"
	"crypto/tls"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/tlscontext"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// recorder is a TLS context that notes what it is asked for.
type recorder struct {
	mu   sync.Mutex
	alpn [][]string
}

func (r *recorder) Config(o tlscontext.Options) *tls.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.alpn = append(r.alpn, o.ALPN)
	return &tls.Config{InsecureSkipVerify: true}
}

func TestProtocolsThatAStreamDemandsGoFirstAndApart(t *testing.T) {
	for _, tc := range []struct {
		name    string
		context []string
		demand  string
		want    []string
	}{
		{"neither", nil, "", []string{"http/1.1"}},
		{"the context's", []string{"own"}, "", nil},
		{"the stream's", nil, "istio,h2", []string{"istio", "h2"}},
		{"both", []string{"own"}, "istio", []string{"istio"}},
	} {
		r := &recorder{}
		m := newTestManager(t, &origin{}, func(o *Options) {
			o.TLS = func(*xdsresource.UpstreamTLS) (ClientTLS, error) { return r, nil }
			o.Dial = func(context.Context, netip.AddrPort, netio.DialOptions) (netio.Conn, error) {
				near, far := netio.Pipe(netip.AddrPort{}, netip.AddrPort{})
				_ = far.Close()
				return near, nil
			}
		})
		spec := cluster("a", "10.0.0.1:443")
		spec.TransportSocket.TLS = &xdsresource.UpstreamTLS{CommonTLS: xdsresource.CommonTLS{ALPN: tc.context}}
		m.Apply([]*xdsresource.Cluster{spec})
		c := m.Cluster("a")
		for _, connect := range []func(*Host, *ConnectOptions) error{
			func(h *Host, o *ConnectOptions) error { _, err := c.NewStream(context.Background(), h, o); return err },
			func(h *Host, o *ConnectOptions) error { _, err := c.Connect(context.Background(), h, o); return err },
		} {
			if err := connect(pick(t, c), &ConnectOptions{ALPN: tc.demand}); err == nil {
				t.Fatal("a handshake without peer succeeded")
			}
		}
		if len(r.alpn) != 2 {
			t.Fatalf("%s: %d handshakes", tc.name, len(r.alpn))
		}
		for i, got := range r.alpn {
			want := tc.want
			if i == 1 && tc.demand == "" {
				want = nil // bytes that are not HTTP offer nothing of their own
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: connection %d offers %q, want %q", tc.name, i, got, want)
			}
		}
		h := pick(t, c)
		if one, other := c.poolFor(h, &ConnectOptions{ALPN: "x"}), c.poolFor(h, &ConnectOptions{}); one == other || one != c.poolFor(h, &ConnectOptions{ALPN: "x"}) {
			t.Errorf("%s: pools don't follow what is offered", tc.name)
		}
	}
	c := serving(t, &origin{}, cluster("plain", "10.0.0.1:80"))
	if c.poolFor(pick(t, c), &ConnectOptions{ALPN: "x"}) != c.poolFor(pick(t, c), &ConnectOptions{}) {
		t.Error("without TLS there is nothing to offer, and one pool")
	}
}

func TestHTTPVersionOfACluster(t *testing.T) {
	m := newTestManager(t, &origin{}, nil)
	var specs []*xdsresource.Cluster
	for name, v := range map[string]xdsresource.UpstreamHTTP{"1": xdsresource.UpstreamHTTP1, "2": xdsresource.UpstreamHTTP2, "auto": xdsresource.UpstreamAuto, "same": xdsresource.UpstreamDownstreamProtocol} {
		s := cluster(name, "10.0.0.1:80")
		s.HTTP.Version = v
		specs = append(specs, s)
	}
	m.Apply(specs)
	for _, tc := range []struct {
		name     string
		came, as message.Version
	}{
		{"1", message.HTTP2, message.HTTP11},
		{"2", message.HTTP11, message.HTTP2},
		{"auto", message.HTTP11, message.HTTP2},
		{"same", message.HTTP10, message.HTTP11},
		{"same", message.HTTP2, message.HTTP2},
		{"absent", message.HTTP2, 0},
	} {
		if got := m.HTTPVersion(tc.name, tc.came); got != tc.as {
			t.Errorf("%s, %s: %s, want %s", tc.name, tc.came, got, tc.as)
		}
	}
}
