package mongoproxy

import (
	"errors"

	mongo_proxyv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/mongo_proxy/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy"

// Config is the filter's configuration: accepted, without effect.
type Config struct{}

// Decode implements filters.NetworkFactory. What would change or judge the
// traffic is an error.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &mongo_proxyv3pb.MongoProxy{}
	if err := decode.Into(a, m, d); err != nil {
		return nil, err
	}
	if m.GetDelay() != nil {
		return nil, errors.New("delay: is not supported")
	}
	if m.GetEmitDynamicMetadata() {
		return nil, errors.New("emit_dynamic_metadata: is not supported: policies could wait for it")
	}
	decode.IgnoreSet(d, m, "MongoDB messages are not looked into", "commands", "max_bson_depth")
	d.Ignore("stat_prefix", "MongoDB messages are not counted; connections and bytes are")
	if m.GetAccessLog() != "" {
		d.Ignore("access_log", "MongoDB messages are not logged; connections are, by tcp_proxy")
	}
	return &Config{}, nil
}
