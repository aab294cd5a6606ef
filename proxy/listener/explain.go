package listener

import (
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Choose returns the chain that would take a connection, nil if none would: what
// serve does, without a connection.
func (c *Config) Choose(ci *streaminfo.Conn) (*Chain, error) {
	sel, err := newSelector(c)
	if err != nil {
		return nil, err
	}
	defaultTransport(ci)
	return sel.pick(ci), nil
}

// Inspect runs the listener filters that need no bytes of the connection, and
// returns the types of those that ran and of those that wait for bytes.
func (c *Config) Inspect(fc *filters.Connection) (ran, waiting []string, err error) {
	for i := range c.ListenerFilters {
		f := &c.ListenerFilters[i]
		if f.Disabled != nil && predicate(f.Disabled, fc.Info.Conn) {
			continue
		}
		name := fmt.Sprintf("listener_filters[%d]", i)
		if i < len(c.Spec.ListenerFilters) {
			name = c.Spec.ListenerFilters[i].Name
		}
		if _, ok := f.Filter.(filters.Detached); !ok {
			waiting = append(waiting, name)
			continue
		}
		if err := f.Filter.OnAccept(fc); err != nil {
			return ran, waiting, err
		}
		ran = append(ran, name)
	}
	return ran, waiting, nil
}
