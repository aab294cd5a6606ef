package filesource

import (
	"errors"
	"fmt"
	"path/filepath"

	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// parse reads a DiscoveryResponse: YAML or JSON, or serialized if the name ends
// with .pb.
func parse(path string, b []byte) (*content, error) {
	switch filepath.Ext(path) {
	case ".pb":
		return parseBinary(b)
	case ".pb_text":
		return nil, errors.New("the text format of protocol buffers is not supported; use YAML, JSON or .pb")
	}
	doc, err := xdsresource.ParseDocument(b)
	if err != nil {
		return nil, err
	}
	rs, err := doc.Resources()
	if err != nil {
		return nil, err
	}
	c := &content{version: doc.Text("version_info")}
	for _, r := range rs {
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Message)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.Path, err)
		}
		c.items = append(c.items, item{typeURL: r.TypeURL, name: r.Name, b: raw})
	}
	return c, nil
}

func parseBinary(b []byte) (*content, error) {
	var m discoveryv3pb.DiscoveryResponse
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("it is no serialized DiscoveryResponse: %w", err)
	}
	c := &content{version: m.GetVersionInfo()}
	for i, a := range m.GetResources() {
		r, err := a.UnmarshalNew()
		if err != nil {
			return nil, fmt.Errorf("resources[%d]: %w", i, err)
		}
		c.items = append(c.items, item{typeURL: a.GetTypeUrl(), name: xdsresource.ResourceName(r), b: a.GetValue()})
	}
	return c, nil
}
