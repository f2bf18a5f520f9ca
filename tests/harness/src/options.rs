//! Which machine is wanted: its IOMMU, its RAM, its PCI devices.

use crate::quirks::QemuQuirks;

/// The options of QEMU's VT-d unit, which the model has as well. The default is QEMU's own.
///
/// ```
/// use iommu_harness::VtdOptions;
/// let options = VtdOptions { caching_mode: true, ..VtdOptions::default() };
/// assert_eq!(options.to_string(), "intel-iommu,caching-mode=on");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VtdOptions {
    /// Width of an IOVA: 39 or 48 bits, on the model also 57. `None` is QEMU's default, see
    /// [`QemuQuirks::vtd_default_address_bits`].
    pub address_bits: Option<u8>,
    /// Whether the unit says that it may cache entries that are not present (CAP.CM).
    pub caching_mode: bool,
    /// Whether the unit supports device TLBs (ECAP.DT).
    pub device_iotlb: bool,
    /// Scalable mode, second stage (ECAP.SMTS, SSTS).
    pub scalable: bool,
    /// Scalable mode with the first stage instead (ECAP.FSTS); on QEMU that needs version 10. The model
    /// can have both, see [`ModelOptions::with_ecap`](crate::ModelOptions::with_ecap).
    pub first_stage: bool,
    /// Pass-through (ECAP.PT).
    pub pass_through: bool,
    /// Interrupt remapping (ECAP.IR). The model has none.
    pub interrupt_remapping: bool,
    /// Snoop control (ECAP.SC).
    pub snoop_control: bool,
    /// DMA remapping at all; without it CAP.SAGAW is 0.
    pub dma_translation: bool,
}

impl Default for VtdOptions {
    fn default() -> Self {
        Self {
            address_bits: None,
            caching_mode: false,
            device_iotlb: false,
            scalable: false,
            first_stage: false,
            pass_through: true,
            interrupt_remapping: true,
            snoop_control: false,
            dma_translation: true,
        }
    }
}

impl VtdOptions {
    /// Width of an IOVA in bits, on a version with these quirks.
    pub fn address_bits(&self, quirks: &QemuQuirks) -> u8 {
        self.address_bits.unwrap_or(quirks.vtd_default_address_bits)
    }
}

impl std::fmt::Display for VtdOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let normal = Self::default();
        f.write_str("intel-iommu")?;
        if let Some(bits) = self.address_bits {
            write!(f, ",aw-bits={bits}")?;
        }
        let switches = [
            ("caching-mode", self.caching_mode, normal.caching_mode),
            ("device-iotlb", self.device_iotlb, normal.device_iotlb),
            ("x-scalable-mode", self.scalable || self.first_stage, false),
            ("x-flts", self.first_stage, normal.first_stage),
            ("pt", self.pass_through, normal.pass_through),
            ("intremap", self.interrupt_remapping, normal.interrupt_remapping),
            ("snoop-control", self.snoop_control, normal.snoop_control),
            ("dma-translation", self.dma_translation, normal.dma_translation),
        ];
        // What has its default is left out, since not every version knows every switch.
        for (name, value, _) in switches.iter().filter(|(_, value, default)| value != default) {
            write!(f, ",{name}={}", if *value { "on" } else { "off" })?;
        }
        Ok(())
    }
}

/// What an SMMUv3 has. The default is QEMU's own.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SmmuOptions {
    /// What it translates (IDR0.S1P, S2P). `None` is all that this QEMU has; anything but
    /// [`SmmuStages::First`] needs version 10.
    pub stages: Option<SmmuStages>,
    /// The only granule of tables that a driver is told of (IDR5.GRAN4K, GRAN16K, GRAN64K); `None` are all three.
    /// QEMU always has all: reads of its register are changed on the way.
    pub granule: Option<SmmuGranule>,
}

/// A granule of translation tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SmmuGranule {
    /// 4 KiB.
    Size4K,
    /// 16 KiB.
    Size16K,
    /// 64 KiB.
    Size64K,
}

/// The stages of translation that an SMMUv3 has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SmmuStages {
    /// Stage 1 only.
    First,
    /// Stage 2 only.
    Second,
    /// Both, also one behind the other.
    Nested,
}

/// A kind of DMA engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// QEMU's teaching device: one buffer of 4 KiB, 64-bit addresses.
    Edu,
    /// The LSI 53C895A SCSI controller: copies between two 32-bit addresses, at once.
    Lsi,
}

/// A kind of bridge. What the IOMMU sees of a request from behind it differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bridge {
    /// `pcie-root-port`: one device behind it, seen as itself.
    RootPort,
    /// `pcie-pci-bridge`: everything behind it is seen as function 0 of device 0 on its secondary bus.
    PcieToPci,
    /// `i82801b11-bridge`, a conventional bridge on the root bus: everything behind it is seen as the
    /// bridge itself.
    Conventional,
}

/// A device on a bus: an engine, or a bridge with what is behind it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    pub(crate) name: String,
    pub(crate) place: Option<(u8, u8)>,
    pub(crate) kind: NodeKind,
    /// The queue depth of its Address Translation Services.
    pub(crate) ats: Option<u8>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum NodeKind {
    Engine(Engine),
    Bridge(Bridge, Vec<Node>),
}

impl Node {
    /// An `edu` called `name`.
    pub fn edu(name: &str) -> Self {
        Self::engine(Engine::Edu, name)
    }

    /// An LSI 53C895A called `name`.
    pub fn lsi(name: &str) -> Self {
        Self::engine(Engine::Lsi, name)
    }

    /// An engine called `name`.
    pub fn engine(engine: Engine, name: &str) -> Self {
        Self { name: name.to_owned(), place: None, kind: NodeKind::Engine(engine), ats: None }
    }

    /// A bridge called `name`, with `children` on its secondary bus.
    pub fn bridge(bridge: Bridge, name: &str, children: impl IntoIterator<Item = Self>) -> Self {
        let kind = NodeKind::Bridge(bridge, children.into_iter().collect());
        Self { name: name.to_owned(), place: None, kind, ats: None }
    }

    /// Puts it at this device and function number of its bus. Otherwise it gets the next free device
    /// number: from 1, or 0 behind a root port.
    pub fn at(mut self, device: u8, function: u8) -> Self {
        self.place = Some((device, function));
        self
    }

    /// Gives an engine Address Translation Services, with room for this many invalidations (1 to 32), and
    /// a [`DeviceTlb`](crate::DeviceTlb). Only the model can: no engine of QEMU has any.
    pub fn ats(mut self, queue_depth: u8) -> Self {
        self.ats = Some(queue_depth);
        self
    }

    fn any(&self, wanted: &dyn Fn(&Engine) -> bool) -> bool {
        match &self.kind {
            NodeKind::Engine(engine) => wanted(engine),
            NodeKind::Bridge(_, children) => children.iter().any(|child| child.any(wanted)),
        }
    }
}

/// Devices on the root bus.
pub type Topology = Vec<Node>;

/// A machine on the board `B`: [`X86Options`] or [`ArmOptions`].
#[derive(Clone, Debug)]
pub struct MachineOptions<B> {
    pub(crate) board: B,
    pub(crate) ram_bytes: u64,
    pub(crate) topology: Topology,
    pub(crate) extra: Vec<String>,
}

/// A q35 machine.
///
/// ```
/// use iommu_harness::options::Bridge;
/// use iommu_harness::{Node, VtdOptions, X86Options};
/// let options = X86Options::new()
///     .vtd(VtdOptions::default())
///     .edu("alone")
///     .node(Node::bridge(Bridge::PcieToPci, "bridge", [Node::edu("first"), Node::edu("second")]));
/// ```
pub type X86Options = MachineOptions<X86>;

/// The board of a q35 machine.
#[derive(Clone, Copy, Default, Debug)]
pub struct X86 {
    pub(crate) vtd: Option<VtdOptions>,
}

/// An Arm machine, QEMU's `virt`.
///
/// ```
/// use iommu_harness::{ArmOptions, SmmuOptions, SmmuStages};
/// let smmu = SmmuOptions { stages: Some(SmmuStages::Nested), ..SmmuOptions::default() };
/// let options = ArmOptions::new().smmu(smmu).edu("edu");
/// ```
pub type ArmOptions = MachineOptions<Arm>;

/// The board of an Arm machine.
#[derive(Clone, Copy, Default, Debug)]
pub struct Arm {
    pub(crate) smmu: Option<SmmuOptions>,
    pub(crate) pci: PciPlace,
}

/// Where configuration space lies on an Arm machine.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum PciPlace {
    /// Above 4 GiB, for 256 buses.
    #[default]
    High,
    /// Below RAM, for 16 buses; then all of RAM must be below 4 GiB.
    Low,
}

impl<B: Default> Default for MachineOptions<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl X86Options {
    /// With a VT-d unit.
    pub fn vtd(mut self, options: VtdOptions) -> Self {
        self.board.vtd = Some(options);
        self
    }
}

impl ArmOptions {
    /// With an SMMUv3.
    pub fn smmu(mut self, options: SmmuOptions) -> Self {
        self.board.smmu = Some(options);
        self
    }

    /// With configuration space there.
    pub fn pci(mut self, place: PciPlace) -> Self {
        self.board.pci = place;
        self
    }
}

impl<B> MachineOptions<B> {
    /// 256 MiB of RAM, no IOMMU, no devices of our own.
    pub fn new() -> Self
    where
        B: Default,
    {
        Self { board: B::default(), ram_bytes: 256 << 20, topology: Topology::new(), extra: Vec::new() }
    }

    /// With this much RAM, a multiple of 2 MiB and at least 64 MiB. Only what is touched costs memory.
    pub fn ram_bytes(mut self, bytes: u64) -> Self {
        self.ram_bytes = bytes;
        self
    }

    /// With an `edu` called `name` on the root bus.
    pub fn edu(self, name: &str) -> Self {
        self.node(Node::edu(name))
    }

    /// With an LSI 53C895A called `name` on the root bus.
    pub fn lsi(self, name: &str) -> Self {
        self.node(Node::lsi(name))
    }

    /// With this device on the root bus.
    pub fn node(mut self, node: Node) -> Self {
        self.topology.push(node);
        self
    }

    /// With these devices on the root bus.
    pub fn nodes(mut self, nodes: impl IntoIterator<Item = Node>) -> Self {
        self.topology.extend(nodes);
        self
    }

    /// With more of QEMU's own arguments, after all others. They mean nothing to the model.
    pub fn arguments<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.extra.extend(arguments.into_iter().map(str::to_owned));
        self
    }

    /// The name of a device with Address Translation Services.
    pub(crate) fn any_ats(&self) -> Option<&str> {
        fn first(nodes: &[Node]) -> Option<&str> {
            nodes.iter().find_map(|node| match &node.kind {
                NodeKind::Engine(_) => node.ats.map(|_| node.name.as_str()),
                NodeKind::Bridge(_, children) => first(children),
            })
        }
        first(&self.topology)
    }

    /// Whether a device needs the machine's clock to run: edu's transfers take 100 ms of it.
    pub(crate) fn needs_clock(&self) -> bool {
        self.topology.iter().any(|node| node.any(&|engine| *engine == Engine::Edu))
    }
}
