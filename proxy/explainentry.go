package proxy

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// destination is where a client connects to: an address, or a name and port.
type destination struct {
	addr netip.AddrPort
	name string
	port uint16
}

// authority is the destination as a CONNECT request names it.
func (d *destination) authority() string {
	if d.addr.IsValid() {
		return d.addr.String()
	}
	return d.name + ":" + strconv.Itoa(int(d.port))
}

func parseDestination(s string) (destination, error) {
	if s == "" {
		return destination{}, nil
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return destination{addr: ap, port: ap.Port()}, nil
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return destination{name: strings.ToLower(s)}, nil
	}
	n, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil {
		return destination{}, fmt.Errorf("destination: %q is neither ip:port nor name:port", s)
	}
	return destination{name: strings.ToLower(s[:i]), port: uint16(n)}, nil
}

// entry finds the listener that the request arrives at, and tells whether it
// comes there through a tunnel (HBONE).
func (w *walk) entry() (bl *builtListener, tunnel bool, err error) {
	if w.dest, err = parseDestination(w.q.Destination); err != nil {
		return nil, false, err
	}
	if err := w.checkHeaders(); err != nil {
		return nil, false, err
	}
	if name := w.q.Listener; name != "" {
		if bl = w.snap.Listeners[name]; bl == nil {
			return nil, false, fmt.Errorf("there is no listener %q; there are %s", name, strings.Join(sortedKeys(w.snap.Listeners), ", "))
		}
		tunnel = w.q.Method != http.MethodConnect && !bl.spec.Internal && w.terminates(bl)
		return bl, tunnel, w.resolve(tunnel)
	}
	var others []*builtListener
	for _, name := range sortedKeys(w.snap.Listeners) {
		l := w.snap.Listeners[name]
		switch {
		case l.spec.Internal:
		case w.terminates(l):
			if bl == nil {
				bl = l
			}
		default:
			others = append(others, l)
		}
	}
	if exact := w.listening(others); exact != nil {
		return exact, false, nil
	}
	if bl != nil {
		if w.q.Destination == "" {
			return nil, false, errors.New("destination: an address (or a service's name and port) is needed to ask a waypoint")
		}
		return bl, true, w.resolve(true)
	}
	if len(others) == 1 {
		return others[0], false, nil
	}
	return nil, false, fmt.Errorf("several listeners could take the request; name one of %s, or a destination with a port", strings.Join(sortedKeys(w.snap.Listeners), ", "))
}

// checkHeaders refuses lines that are no fields.
func (w *walk) checkHeaders() error {
	if err := checkLines("headers", w.q.Headers); err != nil {
		return err
	}
	return checkLines("connect_headers", w.q.ConnectHeaders)
}

func checkLines(field string, lines []string) error {
	for _, line := range lines {
		if name, _, ok := strings.Cut(line, ":"); !ok || strings.TrimSpace(name) == "" {
			return fmt.Errorf("%s: %q is not of the form \"name: value\"", field, line)
		}
	}
	return nil
}

// addLines adds "name: value" lines to h.
func addLines(h *message.Header, lines []string) {
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ":")
		h.Add(strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value))
	}
}

// terminates tells whether a listener takes CONNECT requests into this proxy.
func (w *walk) terminates(bl *builtListener) bool {
	for _, c := range bl.chains {
		for _, h := range c.hcms {
			t := h.routes.Table()
			if t == nil {
				continue
			}
			for _, vh := range t.Config().VirtualHosts {
				for _, r := range vh.Routes {
					if r.Match.Kind == xdsresource.PathConnect && r.Action != nil && w.leadsInside(r.Action.Cluster) {
						return true
					}
				}
			}
		}
	}
	return false
}

// leadsInside tells whether the endpoints of a cluster are internal listeners.
func (w *walk) leadsInside(cluster string) bool {
	spec := w.snap.Resources.Cluster(cluster)
	if spec == nil || spec.Assignment == nil {
		return false
	}
	for i := range spec.Assignment.Localities {
		for k := range spec.Assignment.Localities[i].Endpoints {
			if spec.Assignment.Localities[i].Endpoints[k].InternalListener != "" {
				return true
			}
		}
	}
	return false
}

// listening returns the listener that is bound to the destination: to the very
// address, or else to its port on any.
func (w *walk) listening(ls []*builtListener) *builtListener {
	for _, same := range []func(a netip.AddrPort) bool{
		func(a netip.AddrPort) bool { return a == w.dest.addr },
		func(a netip.AddrPort) bool {
			return w.dest.port != 0 && a.Port() == w.dest.port && (a.Addr().IsUnspecified() || !w.dest.addr.IsValid())
		},
	} {
		for _, l := range ls {
			if slices.ContainsFunc(l.spec.Addresses, same) {
				return l
			}
		}
	}
	return nil
}

// resolve turns a service's name into the address by which the listeners behind
// the tunnel know it.
func (w *walk) resolve(tunnel bool) error {
	if !tunnel || w.dest.addr.IsValid() || w.dest.name == "" {
		return nil
	}
	for _, name := range sortedKeys(w.snap.Listeners) {
		l := w.snap.Listeners[name]
		if !l.spec.Internal || l.spec.FilterChainMatcher == nil {
			continue
		}
		for action, addr := range l.spec.FilterChainMatcher.Destinations() {
			if w.names(action, addr.Port()) {
				w.dest.addr = addr
				w.note("%s is taken for %s, by which filter chain %s is chosen", w.q.Destination, addr, action)
				return nil
			}
		}
	}
	w.note("%s is no name by which a filter chain is chosen; the tunnel is opened to the name itself", w.q.Destination)
	return nil
}

// names tells whether a chain's name, as istiod makes it
// ("inbound-vip|9080|http|reviews.app.svc.cluster.local"), is that of the
// destination.
func (w *walk) names(chain string, port uint16) bool {
	if w.dest.port != 0 && port != w.dest.port {
		return false
	}
	host := chain[strings.LastIndexByte(chain, '|')+1:]
	return host == w.dest.name || strings.HasPrefix(host, w.dest.name+".") && strings.Contains(w.dest.name, ".")
}
