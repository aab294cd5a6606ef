package listener

import (
	"errors"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

var errFilterTimeout = errors.New("listener: listener filters timed out")

// runListenerFilters runs the filters in order under the listener's timeout.
func (l *Listener) runListenerFilters(cur *compiled, c *filters.Connection) (err error) {
	if len(cur.cfg.ListenerFilters) == 0 {
		return nil
	}
	defer func() {
		if errors.Is(err, errFilterTimeout) {
			l.st.filterTimeout.Inc()
		}
	}()
	spec := cur.cfg.Spec
	if d := spec.ListenerFiltersTimeout; d > 0 && needsPeek(cur, c) {
		conn := c.Conn
		t := time.AfterFunc(d, func() { conn.Interrupt(errFilterTimeout) })
		defer func() {
			if !t.Stop() && err == nil { // too late: the connection is or will be interrupted
				err = errFilterTimeout
			}
		}()
	}
	for i := range cur.cfg.ListenerFilters {
		f := &cur.cfg.ListenerFilters[i]
		if f.Disabled != nil && predicate(f.Disabled, c.Info.Conn) {
			continue
		}
		if err := cur.accepted(f.Filter, c); err != nil {
			return err
		}
	}
	return nil
}

// needsPeek tells whether a filter may wait for bytes; only then a timer is
// worth its cost.
func needsPeek(cur *compiled, c *filters.Connection) bool {
	type immediate interface{ Immediate() bool }
	for i := range cur.cfg.ListenerFilters {
		f := &cur.cfg.ListenerFilters[i]
		if im, ok := f.Filter.(immediate); ok && im.Immediate() {
			continue
		}
		if f.Disabled == nil || !predicate(f.Disabled, c.Info.Conn) {
			return true
		}
	}
	return false
}

// predicate evaluates a ListenerFilterChainMatchPredicate.
func predicate(p *xdsresource.ListenerFilterPredicate, ci *streaminfo.Conn) bool {
	switch {
	case p.Any:
		return true
	case p.Not != nil:
		return !predicate(p.Not, ci)
	case len(p.Or) > 0:
		for _, q := range p.Or {
			if predicate(q, ci) {
				return true
			}
		}
		return false
	case len(p.And) > 0:
		for _, q := range p.And {
			if !predicate(q, ci) {
				return false
			}
		}
		return true
	case p.PortEnd > 0:
		port := uint32(ci.Local.Port())
		return port >= p.PortStart && port < p.PortEnd
	}
	return false
}
