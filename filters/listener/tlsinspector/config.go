package tlsinspector

import (
	"fmt"

	tls_inspectorv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"

// Config is the filter's configuration.
type Config struct {
	// CloseOnError closes connections that begin like TLS but whose
	// ClientHello can't be parsed.
	CloseOnError bool
	// MaxClientHello bounds the ClientHello message in bytes.
	MaxClientHello int
}

// Decode implements filters.ListenerFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &tls_inspectorv3pb.TlsInspector{}
	if err := decode.Into(a, m, d); err != nil {
		return nil, err
	}
	c := &Config{CloseOnError: m.GetCloseConnectionOnClientHelloParsingErrors(), MaxClientHello: 16 << 10}
	if v := m.GetMaxClientHelloSize(); v != nil {
		if v.GetValue() < 256 || v.GetValue() > 16<<10 {
			return nil, fmt.Errorf("max_client_hello_size: %d is not between 256 and 16384", v.GetValue())
		}
		c.MaxClientHello = int(v.GetValue())
	}
	if m.GetEnableJa3Fingerprinting().GetValue() {
		d.Ignore("enable_ja3_fingerprinting", "fingerprints are not computed")
	}
	if m.GetEnableJa4Fingerprinting().GetValue() {
		d.Ignore("enable_ja4_fingerprinting", "fingerprints are not computed")
	}
	// initial_read_buffer_size only tunes Envoy's reads.
	return c, nil
}
