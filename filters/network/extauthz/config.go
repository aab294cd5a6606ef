package extauthz

import (
	"errors"
	"fmt"
	"time"

	ext_authzv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/authcheck"
	"github.com/fairlead-mesh/fairlead/filters/internal/authz"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz"

// maxTimeout bounds a check for which no timeout was set: nothing else ends it
// when the client has gone.
const maxTimeout = time.Minute

// Config is the filter's configuration.
type Config struct {
	StatPrefix string
	// Enabled, if not nil, is the metadata that switches the check on.
	Enabled      *authz.Metadata
	Service      *authcheck.Service
	AllowOnError bool
	// Tell is what the service is told; LabelsKey names the node metadata that
	// becomes labels of the destination.
	Tell      authcheck.Telling
	LabelsKey string
}

// Decode implements filters.NetworkFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &ext_authzv3pb.ExtAuthz{}
	if err := decode.Strict(a, m); err != nil {
		return nil, err
	}
	if m.GetShadowMode() {
		return nil, errors.New("shadow_mode: not supported, a check whose answer has no effect looks like protection; leave it out, or record with shadow_rules of RBAC")
	}
	c := &Config{
		StatPrefix: m.GetStatPrefix(), AllowOnError: m.GetFailureModeAllow(), LabelsKey: m.GetBootstrapMetadataLabelsKey(),
		Tell: authcheck.Telling{
			PeerCertificate: m.GetIncludePeerCertificate(), TLSSession: m.GetIncludeTlsSession(), Namespaces: m.GetMetadataContextNamespaces(),
		},
	}
	if m.GetFilterEnabledMetadata() != nil {
		md, err := authz.DecodeMetadata(m.GetFilterEnabledMetadata())
		if err != nil {
			return nil, fmt.Errorf("filter_enabled_metadata.%w", err)
		}
		c.Enabled = &md
	}
	retry, err := decode.GRPCRetry(m.GetGrpcService(), d)
	if err != nil {
		return nil, err
	}
	if c.Service, err = authcheck.DecodeService(m.GetGrpcService(), m.GetTransportApiVersion(), retry); err != nil {
		return nil, err
	}
	if c.Service.Timeout <= 0 || c.Service.Timeout > maxTimeout {
		c.Service.Timeout = maxTimeout
	}
	if len(m.GetTypedMetadataContextNamespaces()) > 0 {
		d.Ignore("typed_metadata_context_namespaces", "there is no typed metadata")
	}
	if m.GetSendTlsAlertOnDenial() {
		d.Ignore("send_tls_alert_on_denial", "refused connections are closed without an alert")
	}
	return c, nil
}
