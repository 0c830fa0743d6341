//! The table of the API: each method with who may call it, where, and what of it is recorded. A method without a row does not compile.

use talon_acl::{AccessRow, AuditClass, OrgScope, Requirement};
use talon_ids::Permission::{
    AnyQuery, ArtifactWriter, CollectClient, CollectServer, DatastoreAccess, LabelClient, NotebookEditor, PrepareResults, ReadResults,
    ServerAdmin, ServerArtifactWriter,
};
use talon_ids::Permissions;
use talon_proto as proto;
use talon_proto::api_server::Api;
use tonic::{Request, Response, Status, Streaming};

use crate::service::ApiService;
use crate::{artifacts, decide, exports, handle, hunts, lookups, monitoring, notebooks, query, secrets, tables, users, watch};

/// One row.
const fn row(name: &'static str, requirement: Requirement, scope: OrgScope, audit: AuditClass, refusal: &'static str) -> AccessRow {
    AccessRow { name, requirement, scope, audit, refusal }
}

/// These permissions, whatever the request says.
const fn all(permissions: &[talon_ids::Permission]) -> Requirement {
    Requirement::all(permissions)
}

/// These permissions, and what else the request makes necessary.
const fn least(permissions: &[talon_ids::Permission], more: &'static str) -> Requirement {
    Requirement::AtLeast(Permissions::of(permissions), more)
}

const READS: AuditClass = AuditClass::Reads;

const fn changes(operations: &'static [&'static str]) -> AuditClass {
    AuditClass::Changes(operations)
}

const USER_RULE: &str = "ORG_ADMIN in the root organisation, or SERVER_ADMIN in each organisation that the request names";
const READER_RULE: &str = "oneself, or READ_RESULTS or SERVER_ADMIN in an organisation of the user, or ORG_ADMIN in the root organisation";
const SHARED: &str = "the notebook is public, or the caller's own, or shared with the caller";
const COLLECT_RULE: &str =
    "COLLECT_CLIENT, or COLLECT_SERVER for the server, and what each artifact requires; COLLECT_BASIC suffices for basic artifacts";
const TARGET_RULE: &str = "COLLECT_CLIENT, or COLLECT_SERVER for the server";

/// A method that is declared `later` decides as all others do and then says that it is not there yet.
macro_rules! api_methods {
    (
        unary { $($method:ident $name:ident($request:ty) -> $response:ty
            { $requirement:expr, $scope:ident, $audit:expr, $refusal:expr } $decide:path => $handle:path;)* }
        streaming { $($stream:ident { $stream_requirement:expr, $stream_scope:ident, $stream_audit:expr, $stream_refusal:expr };)* }
        open { $($open:ident { $open_audit:expr };)* }
    ) => {
        /// A method of the API.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the names say it")]
        pub enum Method {
            $($method,)*
            $($stream,)*
            $($open,)*
        }

        impl Method {
            /// Every method.
            pub const ALL: &'static [Self] = &[$(Self::$method,)* $(Self::$stream,)* $(Self::$open,)*];

            /// The method's row.
            #[must_use]
            pub const fn row(self) -> AccessRow {
                match self {
                    $(Self::$method => row(stringify!($method), $requirement, OrgScope::$scope, $audit, $refusal),)*
                    $(Self::$stream => row(stringify!($stream), $stream_requirement, OrgScope::$stream_scope, $stream_audit, $stream_refusal),)*
                    $(Self::$open => row(stringify!($open), Requirement::Connection, OrgScope::Nowhere, $open_audit, ""),)*
                }
            }
        }

        #[tonic::async_trait]
        impl Api for ApiService {
            $(
                async fn $name(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                    self.unary(Method::$method, request, $decide, $handle).await
                }
            )*

            type QueryStream = query::Answers;

            async fn query(&self, request: Request<proto::VqlCollectorArgs>) -> Result<Response<Self::QueryStream>, Status> {
                query::run(self, request).await
            }

            type WatchEventStream = watch::Events;

            async fn watch_event(&self, request: Request<proto::EventRequest>) -> Result<Response<Self::WatchEventStream>, Status> {
                watch::run(self, request).await
            }

            type SchedulerStream = handle::NoJobs;

            async fn scheduler(
                &self,
                request: Request<Streaming<proto::ScheduleRequest>>,
            ) -> Result<Response<Self::SchedulerStream>, Status> {
                handle::scheduler(self, request).await
            }

            async fn check(&self, _: Request<proto::HealthCheckRequest>) -> Result<Response<proto::HealthCheckResponse>, Status> {
                Ok(Response::new(handle::serving()))
            }

            async fn write_event(&self, _: Request<proto::VqlResponse>) -> Result<Response<()>, Status> {
                Err(Status::unknown("WriteEvent is deprecated, please use PushEvents instead"))
            }
        }
    };
}

api_methods! {
    unary {
        CreateHunt create_hunt(proto::Hunt) -> proto::StartFlowResponse
            { least(&[CollectClient], "START_HUNT to run it; ORG_ADMIN, and COLLECT_CLIENT in each, for other organisations"), Own, changes(&["CreateHunt"]),
              "User is not allowed to launch hunts." } decide::create_hunt => hunts::create_hunt;
        EstimateHunt estimate_hunt(proto::HuntEstimateRequest) -> proto::HuntStats
            { all(&[ReadResults]), Own, READS, "User is not allowed to view hunt results." } decide::by_row => hunts::estimate_hunt;
        GetHuntTable get_hunt_table(proto::GetTableRequest) -> proto::GetTableResponse
            { all(&[ReadResults]), Own, READS, "User is not allowed to view hunt results." } decide::by_row => hunts::get_hunt_table;
        ListHunts list_hunts(proto::ListHuntsRequest) -> proto::ListHuntsResponse
            { all(&[ReadResults]), Own, READS, "User is not allowed to view hunts." } decide::by_row => hunts::list_hunts;
        GetHunt get_hunt(proto::GetHuntRequest) -> proto::Hunt
            { all(&[ReadResults]), Own, READS, "User is not allowed to view hunts." } decide::by_row => hunts::get_hunt;
        GetHuntTags get_hunt_tags(()) -> proto::HuntTags
            { all(&[ReadResults]), Own, READS, "User is not allowed to view hunts." } decide::by_row => hunts::get_hunt_tags;
        ModifyHunt modify_hunt(proto::HuntMutation) -> ()
            { least(&[CollectClient], "START_HUNT to run it, DELETE_RESULTS to delete it"), Own, changes(&["ModifyHunt"]),
              "User is not allowed to modify hunts." } decide::modify_hunt => hunts::modify_hunt;
        GetHuntFlows get_hunt_flows(proto::GetTableRequest) -> proto::GetTableResponse
            { all(&[ReadResults]), Own, READS, "User is not allowed to view hunt results." } decide::by_row => hunts::get_hunt_flows;
        GetHuntResults get_hunt_results(proto::GetHuntResultsRequest) -> proto::GetTableResponse
            { all(&[ReadResults]), Own, READS, "User is not allowed to view results." } decide::by_row => hunts::get_hunt_results;
        NotifyClients notify_clients(proto::NotificationRequest) -> ()
            { all(&[CollectClient]), Own, changes(&["NotifyClients"]), "User is not allowed to launch flows." } decide::by_row => monitoring::notify_clients;
        LabelClients label_clients(proto::LabelClientsRequest) -> proto::ApiResponse
            { all(&[LabelClient]), Own, changes(&["SetClientLabel", "RemoveClientLabel"]), "User is not allowed to label clients." }
            decide::by_row => handle::label_clients;
        ListClients list_clients(proto::SearchClientsRequest) -> proto::SearchClientsResponse
            { all(&[ReadResults]), Own, READS, "User is not allowed to view clients." } decide::by_row => handle::list_clients;
        GetClient get_client(proto::GetClientRequest) -> proto::ApiClient
            { all(&[ReadResults]), Own, READS, "User is not allowed to view clients." } decide::by_row => handle::get_client;
        GetClientMetadata get_client_metadata(proto::GetClientRequest) -> proto::ClientMetadata
            { Requirement::ByRequest("READ_RESULTS, or SERVER_ADMIN for the server"), Own, READS, "User is not allowed to view clients." }
            decide::get_client_metadata => monitoring::get_client_metadata;
        SetClientMetadata set_client_metadata(proto::SetClientMetadataRequest) -> ()
            { all(&[LabelClient]), Own, changes(&["SetMetadata"]), "User is not allowed to modify client labels." } decide::by_row => monitoring::set_client_metadata;
        GetClientFlows get_client_flows(proto::GetTableRequest) -> proto::GetTableResponse
            { all(&[ReadResults]), Own, READS, "User is not allowed to view flows." } decide::by_row => tables::get_client_flows;
        GetUserUITraits get_user_ui_traits(()) -> proto::ApiUser
            { Requirement::User, Own, READS, "" } decide::by_row => users::get_user_ui_traits;
        SetGUIOptions set_gui_options(proto::SetGuiOptionsRequest) -> proto::SetGuiOptionsResponse
            { Requirement::User, Own, changes(&["user_options"]), "" } decide::by_row => users::set_gui_options;
        GetUsers get_users(()) -> proto::Users
            { Requirement::User, Own, READS, "" } decide::by_row => users::get_users;
        GetGlobalUsers get_global_users(()) -> proto::Users
            { Requirement::User, Nowhere, READS, "" } decide::by_row => users::get_global_users;
        GetUserRoles get_user_roles(proto::UserRequest) -> proto::UserRoles
            { Requirement::ByRequest("READ_RESULTS in the organisation, or ORG_ADMIN in the root organisation"), Requested, READS,
              "User is not allowed to access org." } decide::get_user_roles => users::get_user_roles;
        SetUserRoles set_user_roles(proto::UserRoles) -> ()
            { Requirement::ByRequest(USER_RULE), Requested, changes(&["user_grant"]), "" } decide::set_user_roles => users::set_user_roles;
        GetUser get_user(proto::UserRequest) -> proto::VelociraptorUser
            { Requirement::ByRequest(READER_RULE), Nowhere, READS, "User is not allowed to view requested user." } decide::get_user => users::get_user;
        CreateUser create_user(proto::UpdateUserRequest) -> ()
            { Requirement::ByRequest(USER_RULE), Requested, changes(&["user_create"]), "" } decide::create_user => users::create_user;
        GetUserFavorites get_user_favorites(proto::Favorite) -> proto::Favorites
            { Requirement::User, Own, READS, "" } decide::by_row => lookups::get_user_favorites;
        SetPassword set_password(proto::SetPasswordRequest) -> ()
            { Requirement::ByRequest("oneself, or the right over each organisation of the user"), Nowhere, changes(&["Update password"]), "" }
            decide::set_password => users::set_password;
        VFSListDirectory vfs_list_directory(proto::VfsListRequest) -> proto::VfsListResponse
            { all(&[ReadResults]), Own, READS, "User is not allowed to view the VFS." } decide::by_row => handle::later;
        VFSListDirectoryFiles vfs_list_directory_files(proto::GetTableRequest) -> proto::GetTableResponse
            { all(&[ReadResults]), Own, READS, "User is not allowed to view the VFS." } decide::by_row => handle::later;
        VFSRefreshDirectory vfs_refresh_directory(proto::VfsRefreshDirectoryRequest) -> proto::ArtifactCollectorResponse
            { all(&[CollectClient]), Own, changes(&["ScheduleFlow"]), "User is not allowed to launch flows." } decide::by_row => handle::later;
        VFSStatDirectory vfs_stat_directory(proto::VfsListRequest) -> proto::VfsListResponse
            { all(&[ReadResults]), Own, READS, "User is not allowed to launch flows." } decide::by_row => handle::later;
        VFSStatDownload vfs_stat_download(proto::VfsStatDownloadRequest) -> proto::VfsDownloadInfo
            { all(&[ReadResults]), Own, READS, "User is not allowed to view the VFS." } decide::by_row => handle::later;
        VFSDownloadFile vfs_download_file(proto::VfsStatDownloadRequest) -> proto::StartFlowResponse
            { Requirement::ByRequest(COLLECT_RULE), Own, changes(&["ScheduleFlow"]), "" } decide::vfs_download => handle::later;
        GetTable get_table(proto::GetTableRequest) -> proto::GetTableResponse
            { all(&[ReadResults]), Own, READS, "User is not allowed to view results." } decide::by_row => tables::get_table;
        SearchFile search_file(proto::SearchFileRequest) -> proto::SearchFileResponse
            { all(&[ReadResults]), Own, READS, "User is not allowed to search files." } decide::by_row => lookups::search_file;
        CollectArtifact collect_artifact(proto::ArtifactCollectorArgs) -> proto::ArtifactCollectorResponse
            { Requirement::ByRequest(COLLECT_RULE), Own, changes(&["ScheduleFlow"]), "" } decide::collect => handle::collect_artifact;
        CancelFlow cancel_flow(proto::ApiFlowRequest) -> proto::StartFlowResponse
            { Requirement::ByRequest(TARGET_RULE), Own, changes(&["CancelFlow"]), "User is not allowed to cancel flows." } decide::flow => handle::cancel_flow;
        ResumeFlow resume_flow(proto::ApiFlowRequest) -> ()
            { Requirement::ByRequest(TARGET_RULE), Own, changes(&["ResumeFlow"]), "User is not allowed to resume flows." } decide::flow => handle::later;
        GetFlowDetails get_flow_details(proto::ApiFlowRequest) -> proto::FlowDetails
            { all(&[ReadResults]), Own, READS, "User is not allowed to launch flows." } decide::by_row => handle::get_flow_details;
        GetFlowRequests get_flow_requests(proto::ApiFlowRequest) -> proto::ApiFlowRequestDetails
            { all(&[ReadResults]), Own, READS, "User is not allowed to view flows." } decide::by_row => lookups::get_flow_requests;
        GetKeywordCompletions get_keyword_completions(()) -> proto::KeywordCompletions
            { Requirement::User, Nowhere, READS, "" } decide::by_row => lookups::get_keyword_completions;
        ReformatVQL reformat_vql(proto::ReformatVqlMessage) -> proto::ReformatVqlMessage
            { all(&[ReadResults]), Own, READS, "User is not allowed to read notebooks." } decide::by_row => handle::reformat_vql;
        GetArtifacts get_artifacts(proto::GetArtifactsRequest) -> proto::ArtifactDescriptors
            { all(&[ReadResults]), Own, READS, "User is not allowed to view custom artifacts." } decide::by_row => artifacts::get_artifacts;
        GetArtifactFile get_artifact_file(proto::GetArtifactRequest) -> proto::GetArtifactResponse
            { all(&[ReadResults]), Own, READS, "User is not allowed to view custom artifacts." } decide::by_row => artifacts::get_artifact_file;
        SetArtifactFile set_artifact_file(proto::SetArtifactRequest) -> proto::SetArtifactResponse
            { Requirement::ByRequest("ARTIFACT_WRITER for artifacts of clients, SERVER_ARTIFACT_WRITER for those of the server"), Own,
              changes(&["SetArtifactFile", "artifact_delete"]), "" } decide::set_artifact_file => artifacts::set_artifact_file;
        LoadArtifactPack load_artifact_pack(proto::LoadArtifactPackRequest) -> proto::LoadArtifactPackResponse
            { all(&[ServerArtifactWriter]), Own, changes(&["LoadArtifactPack"]), "User is not allowed to upload artifact packs." }
            decide::by_row => artifacts::load_artifact_pack;
        SearchDocs search_docs(proto::DocSearchRequest) -> proto::DocSearchResponses
            { Requirement::User, Nowhere, READS, "" } decide::by_row => handle::later;
        GetToolInfo get_tool_info(proto::Tool) -> proto::Tool
            { all(&[ReadResults]), Own, READS, "User is not allowed to view tools." } decide::by_row => artifacts::get_tool_info;
        SetToolInfo set_tool_info(proto::Tool) -> proto::Tool
            { all(&[ArtifactWriter]), Own, changes(&["SetToolInfo"]), "User is not allowed to update tool definitions." } decide::by_row => artifacts::set_tool_info;
        GetReport get_report(proto::GetReportRequest) -> proto::GetReportResponse
            { all(&[ReadResults]), Own, READS, "User is not allowed to view reports." } decide::by_row => handle::later;
        GetServerMonitoringState get_server_monitoring_state(()) -> proto::ArtifactCollectorArgs
            { all(&[ReadResults]), Own, READS, "User is not allowed to read results (READ_RESULTS)." } decide::by_row => monitoring::get_server_monitoring_state;
        SetServerMonitoringState set_server_monitoring_state(proto::ArtifactCollectorArgs) -> proto::ArtifactCollectorArgs
            { all(&[CollectServer]), Own, changes(&["SetServerMonitoringState"]), "User is not allowed to modify artifacts (COLLECT_SERVER)." }
            decide::by_row => monitoring::set_server_monitoring_state;
        GetClientMonitoringState get_client_monitoring_state(proto::GetClientMonitoringStateRequest) -> proto::ClientEventTable
            { all(&[ReadResults]), Own, READS, "User is not allowed to read monitoring artifacts (READ_RESULTS)." }
            decide::by_row => handle::get_client_monitoring_state;
        SetClientMonitoringState set_client_monitoring_state(proto::ClientEventTable) -> ()
            { least(&[CollectClient], "what each artifact of the table requires"), Own, changes(&["SetClientMonitoringState"]),
              "User is not allowed to modify monitoring artifacts (COLLECT_CLIENT)." } decide::by_row => monitoring::set_client_monitoring_state;
        ListAvailableEventResults list_available_event_results(proto::ListAvailableEventResultsRequest) -> proto::ListAvailableEventResultsResponse
            { all(&[ReadResults]), Own, READS, "User is not allowed to view results." } decide::by_row => monitoring::list_available_event_results;
        CreateDownloadFile create_download_file(proto::CreateDownloadRequest) -> proto::CreateDownloadResponse
            { all(&[PrepareResults]), Own, changes(&["CreateDownloadRequest", "create_flow_download", "create_hunt_download"]), "User is not allowed to create downloads (PREPARE_RESULTS)." }
            decide::by_row => exports::create_download_file;
        GetNotebooks get_notebooks(proto::NotebookCellRequest) -> proto::Notebooks
            { least(&[ReadResults], SHARED), Own, READS, "User is not allowed to read notebooks." } decide::by_row => notebooks::get_notebooks;
        NewNotebook new_notebook(proto::NotebookMetadata) -> proto::NotebookMetadata
            { all(&[NotebookEditor]), Own, changes(&["CreateNotebook"]), "User is not allowed to create notebooks." } decide::by_row => notebooks::new_notebook;
        UpdateNotebook update_notebook(proto::NotebookMetadata) -> proto::NotebookMetadata
            { least(&[NotebookEditor], SHARED), Own, changes(&["UpdateNotebook"]), "User is not allowed to edit notebooks." }
            decide::by_row => notebooks::update_notebook;
        DeleteNotebook delete_notebook(proto::NotebookMetadata) -> ()
            { least(&[NotebookEditor], SHARED), Own, changes(&["DeleteNotebook"]), "User is not allowed to delete notebooks." }
            decide::by_row => notebooks::delete_notebook;
        NewNotebookCell new_notebook_cell(proto::NotebookCellRequest) -> proto::NotebookMetadata
            { least(&[NotebookEditor], SHARED), Own, changes(&["UpdateNotebookCell"]), "User is not allowed to edit notebooks." }
            decide::by_row => notebooks::new_notebook_cell;
        GetNotebookCell get_notebook_cell(proto::NotebookCellRequest) -> proto::NotebookCell
            { least(&[ReadResults], SHARED), Own, READS, "User is not allowed to read notebooks." } decide::by_row => notebooks::get_notebook_cell;
        UpdateNotebookCell update_notebook_cell(proto::NotebookCellRequest) -> proto::NotebookCell
            { least(&[NotebookEditor], SHARED), Own, changes(&["UpdateNotebookCell"]), "User is not allowed to edit notebooks." }
            decide::by_row => notebooks::update_notebook_cell;
        RevertNotebookCell revert_notebook_cell(proto::NotebookCellRequest) -> proto::NotebookCell
            { least(&[NotebookEditor], SHARED), Own, changes(&["UpdateNotebookCell"]), "User is not allowed to edit notebooks." }
            decide::by_row => notebooks::revert_notebook_cell;
        CancelNotebookCell cancel_notebook_cell(proto::NotebookCellRequest) -> ()
            { least(&[NotebookEditor], SHARED), Own, changes(&["CancelNotebookCell"]), "User is not allowed to edit notebooks." }
            decide::by_row => notebooks::cancel_notebook_cell;
        CreateNotebookDownloadFile create_notebook_download_file(proto::NotebookExportRequest) -> ()
            { least(&[PrepareResults], SHARED), Own, changes(&["ExportNotebook"]), "User is not allowed to export notebooks." }
            decide::by_row => exports::create_notebook_download_file;
        UploadNotebookAttachment upload_notebook_attachment(proto::NotebookFileUploadRequest) -> proto::NotebookFileUploadResponse
            { least(&[NotebookEditor], SHARED), Own, changes(&["UploadNotebookAttachment"]), "User is not allowed to edit notebooks." }
            decide::by_row => notebooks::upload_notebook_attachment;
        RemoveNotebookAttachment remove_notebook_attachment(proto::NotebookFileUploadRequest) -> ()
            { least(&[PrepareResults], SHARED), Own, changes(&["RemoveNotebookAttachment"]), "User is not allowed to update notebooks." }
            decide::by_row => notebooks::remove_notebook_attachment;
        AnnotateTimeline annotate_timeline(proto::AnnotationRequest) -> ()
            { least(&[NotebookEditor], SHARED), Own, changes(&["AnnotateTimeline"]), "User is not allowed to update notebooks." }
            decide::by_row => notebooks::annotate_timeline;
        GetSecretDefinitions get_secret_definitions(()) -> proto::SecretDefinitionList
            { all(&[ReadResults]), Own, READS, "User is not allowed to view secrets." } decide::by_row => secrets::get_secret_definitions;
        AddSecret add_secret(proto::Secret) -> ()
            { all(&[ServerAdmin]), Own, changes(&["secret_add"]), "User is not allowed to manage secrets." } decide::by_row => secrets::add_secret;
        ModifySecret modify_secret(proto::ModifySecretRequest) -> ()
            { all(&[ServerAdmin]), Own, changes(&["secret_modify"]), "User is not allowed to manage secrets." } decide::by_row => secrets::modify_secret;
        GetSecret get_secret(proto::Secret) -> proto::Secret
            { all(&[ServerAdmin]), Own, READS, "User is not allowed to manage secrets." } decide::by_row => secrets::get_secret;
        VFSGetBuffer vfs_get_buffer(proto::VfsFileBuffer) -> proto::VfsFileBuffer
            { least(&[ReadResults], "the path is not under a denied prefix"), Requested, READS, "User is not allowed to view the VFS." }
            decide::vfs_get_buffer => handle::vfs_get_buffer;
        PushEvents push_events(proto::PushEventRequest) -> ()
            { Requirement::Queue, Requested, AuditClass::Delegates, "" } decide::push_events => handle::push_events;
        GetSubject get_subject(proto::DataRequest) -> proto::DataResponse
            { all(&[DatastoreAccess]), Own, READS, "User is not allowed to access datastore." } decide::datastore => handle::later;
        SetSubject set_subject(proto::DataRequest) -> proto::DataResponse
            { all(&[DatastoreAccess]), Own, changes(&["SetSubject"]), "User is not allowed to access datastore." } decide::datastore => handle::later;
        DeleteSubject delete_subject(proto::DataRequest) -> ()
            { all(&[DatastoreAccess]), Own, changes(&["DeleteSubject"]), "User is not allowed to access datastore." } decide::datastore => handle::later;
        ListChildren list_children(proto::DataRequest) -> proto::ListChildrenResponse
            { all(&[DatastoreAccess]), Own, READS, "User is not allowed to access datastore." } decide::datastore => handle::later;
    }
    streaming {
        Query { all(&[AnyQuery]), Requested, changes(&["api_query"]), "Permission denied: User {user} requires permission ANY_QUERY to run queries" };
        WatchEvent { all(&[AnyQuery]), Requested, READS, "Permission denied: User {user} requires permission ANY_QUERY to run queries" };
        Scheduler { all(&[DatastoreAccess]), Own, AuditClass::Delegates, "User {user} is not allowed to read notebooks." };
    }
    open {
        Check { READS };
        WriteEvent { READS };
    }
}

impl Method {
    /// What a caller is told who is no user. Some methods of stock servers use the general code.
    pub(crate) fn unknown_user(self, text: &str) -> Status {
        match self {
            Self::Query | Self::WatchEvent | Self::GetUser | Self::ReformatVQL | Self::GetNotebooks | Self::AnnotateTimeline => {
                Status::unknown(text)
            }
            _ => Status::not_found(text),
        }
    }
}
