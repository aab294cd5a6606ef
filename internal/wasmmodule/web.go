package wasmmodule

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// maxRedirects bounds how often a request is sent on.
const maxRedirects = 5

// web makes requests to hosts that configurations name. Where they lead is
// limited: never to link-local addresses (the metadata services of clouds), to
// this machine itself only if the URL says so, and never from TLS to plain HTTP.
type web struct {
	insecure []string

	mu      sync.Mutex
	clients map[trust]*http.Client
}

// trust is what a request's host allows.
type trust struct {
	loopback bool // it is this machine
	insecure bool // certificates aren't verified
	plain    bool // plain HTTP
}

func newWeb(insecure []string) *web {
	return &web{insecure: insecure, clients: map[trust]*http.Client{}}
}

// allows tells whether hostport is among the insecure hosts.
func (w *web) allows(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	return slices.Contains(w.insecure, "*") || slices.Contains(w.insecure, hostport) || err == nil && slices.Contains(w.insecure, host)
}

func (w *web) trust(hostport string, plain bool) trust {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	return trust{loopback: isLoopback(host), insecure: w.allows(hostport), plain: plain}
}

// client returns the client for requests that begin at hostport.
func (w *web) client(hostport string, plain bool) *http.Client {
	t := w.trust(hostport, plain)
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.clients[t]
	if c == nil {
		c = t.client()
		w.clients[t] = c
	}
	return c
}

func (w *web) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.clients {
		c.CloseIdleConnections()
	}
}

func (t trust) client() *http.Client {
	d := &net.Dialer{Timeout: 10 * time.Second, Control: t.control}
	tr := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: d.DialContext,
		TLSHandshakeTimeout: 10 * time.Second, MaxIdleConnsPerHost: 1, IdleConnTimeout: 5 * time.Second,
		MaxResponseHeaderBytes: 64 << 10, DisableCompression: true, ForceAttemptHTTP2: false,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: t.insecure}, //nolint:gosec // for the hosts that the operator lists
	}
	return &http.Client{Transport: &guarded{tr, t.plain}, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return fmt.Errorf("more than %d redirects", maxRedirects)
		}
		return nil
	}}
}

// control refuses addresses that no module comes from.
func (t trust) control(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	switch a := ap.Addr().Unmap(); {
	case a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified():
		return fmt.Errorf("modules are not fetched from %s", a)
	case a.IsLoopback() && !t.loopback:
		return fmt.Errorf("modules are not fetched from %s unless the URL says so", a)
	}
	return nil
}

// guarded refuses plain HTTP where TLS was asked for: by a redirect, or the place
// that a registry names for tokens.
type guarded struct {
	http.RoundTripper
	plain bool
}

// RoundTrip implements http.RoundTripper.
func (g *guarded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && (!g.plain || r.URL.Scheme != "http") {
		return nil, fmt.Errorf("led to %s://%s, which is not https", r.URL.Scheme, r.URL.Host)
	}
	return g.RoundTripper.RoundTrip(r)
}

// CloseIdleConnections lets http.Client reach the transport.
func (g *guarded) CloseIdleConnections() {
	if c, ok := g.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// get downloads a file of at most limit bytes.
func (w *web) get(ctx context.Context, u *url.URL, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return nil, final(resultConfig, errors.New("the URL is malformed"))
	}
	req.Header.Set("User-Agent", "fairlead")
	resp, err := w.client(u.Host, u.Scheme == "http").Do(req)
	if err != nil {
		return nil, plainly(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
		return nil, status(resp.StatusCode, resultDownload)
	}
	if resp.ContentLength > limit {
		return nil, final(resultDownload, tooLarge("the file", limit))
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, plainly(err)
	}
	if int64(len(b)) > limit {
		return nil, final(resultDownload, tooLarge("the file", limit))
	}
	return b, nil
}

// status is the error for an answer. Those of servers that are in trouble may
// change soon.
func status(code int, result string) *fault {
	err := fmt.Errorf("the server answers %d %s", code, http.StatusText(code))
	soon := code >= 500 && code != http.StatusNotImplemented && code != http.StatusHTTPVersionNotSupported || code == http.StatusTooManyRequests || code == http.StatusRequestTimeout
	return &fault{result, !soon, err}
}

// plainly removes the URL from an error of net/http: it may have a secret in it,
// and those who tell the error tell it, too.
func plainly(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// callCluster downloads a file by a cluster of the proxy: its TLS, load
// balancing and circuit breakers are those of any callout.
func (s *Store) callCluster(ctx context.Context, ref *filters.ModuleRef, u *url.URL) ([]byte, error) {
	var h message.Header
	h.Add(message.Method, http.MethodGet)
	h.Add(message.Scheme, u.Scheme)
	h.Add(message.Authority, u.Host)
	h.Add(message.Path, u.RequestURI())
	h.Add("user-agent", "fairlead")
	resp, err := s.opt.Upstreams.RoundTrip(ctx, ref.Cluster, &filters.Callout{Header: h}, s.opt.MaxModule)
	if err != nil {
		return nil, err // names the cluster
	}
	if resp.Status != http.StatusOK {
		f := status(resp.Status, resultDownload)
		f.err = fmt.Errorf("cluster %s: %w", ref.Cluster, f.err)
		return nil, f
	}
	return resp.Body, nil
}
